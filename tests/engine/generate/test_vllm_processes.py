from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from engine.config.rollout import GeneratorConfig, Precision, VllmConfig
from engine.generate.vllm_processes import cache_bytes, inherited
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
    import select

    ended, _, _ = select.select([engine], [], [], 60.0)
    assert ended == [engine]
    generator.communicate(timeout=60)


def test_the_cache_holds_every_slot_at_its_longest() -> None:
    config = GeneratorConfig(precision=Precision.float32)
    architecture = tiny_config()  # 2 layers, 2 key-value heads of width 16
    blocks = 4 * 2 + 1
    assert cache_bytes(architecture, config, slots=4, context=130, on_cpu=True) == blocks * 128 * 2 * 2 * 16 * 4 * 2
    assert cache_bytes(architecture, config, slots=4, context=130, on_cpu=False) is None
    given = GeneratorConfig(vllm=VllmConfig(kv_cache_gib=0.5))
    assert cache_bytes(architecture, given, slots=4, context=130, on_cpu=True) == 2**29
