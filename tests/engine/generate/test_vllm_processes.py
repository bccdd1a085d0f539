from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from engine.config.rollout import GeneratorConfig, Precision, VllmConfig
from engine.errors import ActorError
from engine.generate.vllm_processes import Keeper, cache_bytes, engine_seed, inherited, named
from tests.small_models import tiny_config


def test_surroundings_are_those_of_before_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD", raising=False)
    before, mask = dict(os.environ), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with inherited(2, 60.0):
        assert os.environ["OMP_NUM_THREADS"] == "2"
        assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert dict(os.environ) == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


# The generator starts an engine, the engine a worker; the worker says who they are, then all of them wait.
GENERATOR = """
import subprocess, sys
from engine.generate.vllm_processes import inherited
with inherited(1, 60.0):
    engine = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
engine.wait()
"""
ENGINE = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
WORKER = """
import os, sys
from engine.generate.vllm_processes import end_with_owner
end_with_owner()
print(os.getppid(), flush=True)
sys.stdin.read()
"""


def test_no_process_of_vllms_outlives_the_generator() -> None:
    generator = subprocess.Popen([sys.executable, "-c", GENERATOR, ENGINE, WORKER], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True)
    assert generator.stdout is not None
    engine = os.pidfd_open(int(generator.stdout.readline()))
    generator.kill()
    generator.wait(timeout=60)
    ended, _, _ = select.select([engine], [], [], 60.0)
    assert ended == [engine]
    generator.communicate(timeout=60)


# The model lives in the process that the generator started, and hangs where no thread of Python's can help.
ALONE = """
import subprocess, sys
from engine.generate.vllm_processes import Keeper, inherited
with inherited(1, 60.0):
    model = Keeper().start(lambda: subprocess.Popen([sys.executable, "-c", sys.argv[1]]), 60.0)
model.wait()
"""
HUNG = """
import ctypes, os, signal
from engine.generate.vllm_processes import end_with_owner
end_with_owner()
signal.signal(signal.SIGTERM, lambda *_: None)
print(os.getpid(), flush=True)
while True:
    ctypes.PyDLL(None).pause()
"""


def test_an_engine_that_hangs_in_native_code_ends_with_the_generator_too() -> None:
    generator = subprocess.Popen([sys.executable, "-c", ALONE, HUNG], stdout=subprocess.PIPE, text=True)
    assert generator.stdout is not None
    model = os.pidfd_open(int(generator.stdout.readline()))
    try:
        assert select.select([model], [], [], 0.5)[0] == [], "it lives as long as the generator does"
        generator.kill()
        generator.wait(timeout=60)
        assert select.select([model], [], [], 20.0)[0] == [model]
    finally:
        generator.kill()
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(model, signal.SIGKILL)
        generator.communicate(timeout=60)


ORPHAN = """
import os, subprocess, sys
os.environ["PERILUNE_GENERATOR_PID"] = sys.argv[1]
from engine.generate.vllm_processes import end_with_owner
end_with_owner()
"""


def test_without_its_generator_a_model_ends_itself_and_nobody_else() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(timeout=60)
    ended = subprocess.run([sys.executable, "-c", ORPHAN, str(gone.pid)], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL


def test_a_start_that_takes_too_long_is_given_up_and_leaves_no_process() -> None:
    started: list[Any] = []
    threads = set(threading.enumerate())

    def hangs() -> None:
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600.0,))
        child.start()
        started.append(child)
        child.join(600.0)
        raise RuntimeError("the engine ended")

    with pytest.raises(ActorError, match=r"generator-0#1 during starting vLLM: .* did not answer within 3 s"), \
            named("generator-0#1", "starting vLLM", 3.0):
        Keeper().start(hangs, 3.0)
    (child,) = started
    assert not child.is_alive()
    assert not any(thread.name == "keeps-vllm" for thread in set(threading.enumerate()) - threads)


def test_what_a_start_raises_is_raised_and_its_thread_stays_until_it_is_released() -> None:
    def fails() -> None:
        raise ValueError("no such model")

    with pytest.raises(ActorError, match="failed: no such model"), named("generator-0#1", "starting vLLM", 60.0):
        Keeper().start(fails, 60.0)
    keeper = Keeper()
    thread = keeper.start(threading.current_thread, 60.0)
    assert thread.is_alive()
    keeper.release()
    thread.join(60.0)
    assert not thread.is_alive()


def test_the_cache_holds_every_slot_at_its_longest() -> None:
    config = GeneratorConfig(precision=Precision.float32)
    architecture = tiny_config()  # 2 layers, 2 key-value heads of width 16
    blocks = 4 * 2 + 1
    assert cache_bytes(architecture, config, slots=4, context=130, alone=False) == blocks * 128 * 2 * 2 * 16 * 4 * 2
    assert cache_bytes(architecture, config, slots=4, context=130, alone=True) is None
    given = GeneratorConfig(vllm=VllmConfig(kv_cache_gib=0.5))
    for alone in (False, True):
        assert cache_bytes(architecture, given, slots=4, context=130, alone=alone) == 2**29


def test_generators_of_one_run_draw_apart_and_again_the_same() -> None:
    seeds = [engine_seed(seed, name) for seed in (5, 6) for name in ("generator-0#1", "generator-0#2", "evaluator#1")]
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert engine_seed(5, "generator-0#1") == seeds[0]
