"""vLLM's processes: how long they may take, what they inherit, how much cache they get, and that none outlives its
generator.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from engine.config.rollout import GeneratorConfig, Precision
from engine.errors import ActorError
from engine.ops.sample import random_key

T = TypeVar("T")
_OWNER = "PERILUNE_GENERATOR_PID"
_BLOCK = 128
"""Positions that vLLM gives out at once on a CPU."""
_PR_SET_PDEATHSIG = 1
_GRACE_S = 10.0
"""Seconds that a start which was given up has to notice that its processes are gone."""


class Keeper:
    """The thread that starts vLLM's processes, with a deadline, and then stays.

    Starting blocks, so only another thread can give it up. The kernel counts the thread that started a process as
    its parent, and ends the process with it (:func:`end_with_owner`): the thread must live as long as they do.
    """

    def __init__(self) -> None:
        self._released = threading.Event()

    def start(self, work: Callable[[], T], deadline_s: float) -> T:
        """Do ``work`` in the thread; what it raises is raised here.

        Raises:
            TimeoutError: it is not done within the deadline; the processes that it started are ended.
        """
        before = set(multiprocessing.active_children())
        outcome: Future[T] = Future()
        thread = threading.Thread(target=self._keep, args=(work, outcome), name="keeps-vllm", daemon=True)
        thread.start()
        try:
            return outcome.result(deadline_s)
        except BaseException:
            self.release()
            for child in set(multiprocessing.active_children()) - before:
                child.kill()
            thread.join(_GRACE_S)
            raise

    def _keep(self, work: Callable[[], T], outcome: Future[T]) -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the outcome is waited for
            outcome.set_exception(error)
        self._released.wait()  # as long as the engine lives; a daemon, so it holds up nobody's end

    def release(self) -> None:
        """Let the thread end, and with it whatever of its processes is left; twice is harmless."""
        self._released.set()


@contextmanager
def named(name: str, during: str, deadline_s: float) -> Iterator[None]:
    """Whatever vLLM raises meanwhile becomes an error of this generator.

    Raises:
        ActorError: it failed, or was not done within the deadline.
    """
    try:
        yield
    except TimeoutError:
        raise ActorError(name, during, f"vLLM's engine did not answer within {deadline_s:g} s") from None
    except Exception as error:
        raise ActorError(name, during, f"vLLM's engine failed: {error or type(error).__name__}") from error


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

    The engine is this process, or the one that started it. The kernel ends this process with the one that started
    it, without asking anybody here: a model may hang in native code, holding Python's lock.
    """
    owner, parent = int(os.environ[_OWNER]), os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        _end(os.getpid())  # it went before the kernel was told
    if parent != owner:
        _end_engine(parent, owner)


def _end_engine(engine: int, owner: int) -> None:
    """End the process between this one and the generator once the latter is gone; this one goes with it."""
    try:
        fd, between = os.pidfd_open(owner), _parent_of(engine) == owner
    except (ProcessLookupError, FileNotFoundError):
        between = False
    if not between:
        # The generator has gone, and the parent may be anybody by now. An engine ends when its model does.
        _end(os.getpid())
        return

    def watch() -> None:
        select.select([fd], [], [])
        _end(engine)

    threading.Thread(target=watch, name="watches-the-generator", daemon=True).start()


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def engine_seed(seed: int, name: str) -> int:
    """Of an engine: generators share the seed of the run, and shall not draw the same.

    Example:
        >>> engine_seed(5, "generator-0#1") != engine_seed(5, "generator-1#1")
        True
    """
    return random_key(seed, crc32(name.encode()), 0) % 2**32


def cache_bytes(architecture: Any, config: GeneratorConfig, slots: int, context: int, alone: bool) -> int | None:
    """Bytes of the key-value cache; None leaves it to vLLM, which takes what its share of the device leaves.

    Args:
        architecture: a transformers config.
        config: ``vllm.kv_cache_gib`` has the first word.
        slots: requests that decode at once.
        context: tokens of the longest request.
        alone: nobody else computes on the device. vLLM measures what is free there before and after it tries the
            model, counts what others took meanwhile as its own, and ends where they gave something back.
    """
    if config.vllm.kv_cache_gib or alone:
        return int(config.vllm.kv_cache_gib * 2**30) or None
    positions = (slots * -(-context // _BLOCK) + 1) * _BLOCK
    size = getattr(architecture, "head_dim", None) or architecture.hidden_size // architecture.num_attention_heads
    item = 4 if config.precision is Precision.float32 else 2
    return int(positions * 2 * architecture.num_key_value_heads * size * item * architecture.num_hidden_layers)
