"""vLLM's processes: what they inherit, how much cache they take, and that none outlives its generator."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.config.rollout import GeneratorConfig, Precision

_OWNER = "PERILUNE_GENERATOR_PID"
_BLOCK = 128
"""Positions that vLLM gives out at once on a CPU."""


@contextmanager
def inherited(threads: int, deadline_s: float) -> Iterator[None]:
    """Surroundings to start vLLM's processes in.

    Threads are counted, but bound to no core, which others compute on too; nothing is reported to anybody; Ctrl-C
    reaches this process alone, which cuts first and ends them then.
    """
    wanted = {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn", "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENGINE_READY_TIMEOUT_S": str(max(int(deadline_s), 1)),
        "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        _OWNER: str(os.getpid()),
    }
    before = {name: os.environ.get(name) for name in wanted}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_with_owner() -> None:
    """Called where vLLM's model lives: when the generator is gone, however it went, the engine ends.

    The engine is this process, or the one that started it and takes it along.
    """
    owner, parent = int(os.environ[_OWNER]), os.getppid()
    engine = os.getpid() if parent == owner else parent
    try:
        fd = os.pidfd_open(owner)
    except ProcessLookupError:
        os.kill(engine, signal.SIGTERM)
        return

    def watch() -> None:
        select.select([fd], [], [])
        os.kill(engine, signal.SIGTERM)

    threading.Thread(target=watch, name="watches-the-generator", daemon=True).start()


def cache_bytes(architecture: Any, config: GeneratorConfig, slots: int, context: int, on_cpu: bool) -> int | None:
    """Bytes of the key-value cache; None leaves it to vLLM, which takes its share of the device.

    Args:
        architecture: a transformers config.
        config: ``vllm.kv_cache_gib`` has the first word.
        slots: requests that decode at once.
        context: tokens of the longest request.
        on_cpu: there vLLM's share would be one of the whole machine's memory.
    """
    if config.vllm.kv_cache_gib or not on_cpu:
        return int(config.vllm.kv_cache_gib * 2**30) or None
    positions = (slots * -(-context // _BLOCK) + 1) * _BLOCK
    size = getattr(architecture, "head_dim", None) or architecture.hidden_size // architecture.num_attention_heads
    item = 4 if config.precision is Precision.float32 else 2
    return int(positions * 2 * architecture.num_key_value_heads * size * item * architecture.num_hidden_layers)
