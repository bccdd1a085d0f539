"""Judges in processes of their own, killed from outside when they overrun.

Nothing inside a process can stop a regular expression or an integer power that holds the interpreter, so
the clock is kept here: a worker that overruns gets SIGKILL with its whole process group and is replaced
at once. A worker announces when it has built the judge, so imports never count against the deadline.

The workers are plain subprocesses, neither forks nor multiprocessing children: a fork of a threaded actor
may dead-lock and a multiprocessing spawn imports the actor's main module again. Their standard input is a
pipe that only the parent holds; when the parent ends, the kernel ends them by SIGIO, busy or not.
"""

from __future__ import annotations

import fcntl
import math
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from engine.config.rewards import RewardConfig
from engine.errors import JudgeError
from engine.records.codec import decode, encode
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Outcome, Verdict

Item = tuple[Prompt, str, FinishReason | None]
"""What is judged: the prompt, the text of the response, why it ended."""
JudgeFunction = Callable[[Prompt, str, FinishReason | None], Verdict]
JudgeBuilder = Callable[[str], JudgeFunction]
"""From the kind of a prompt to its judge; picklable, for it travels to the workers."""

START_DEADLINE_S = 60.0
"""Seconds in which a worker must have started and built the judge of a kind."""
_REAP_DEADLINE_S = 2.0
_STARTED = b"started"
_BOOT = "import sys; sys.path[:] = {path!r}; from engine.rewards.pool import serve; serve({channel})"


class _Worker:
    """One subprocess, what it is busy with, and until when."""

    def __init__(self, builder: bytes) -> None:
        self.job: int | None = None
        self.judging = False
        self.fresh = True
        self.expires = math.inf
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT.format(path=sys.path, channel=theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ},
            )
        _bound_blocking(self.connection, START_DEADLINE_S)
        with suppress(OSError):  # one that is gone already shows when it takes its first item
            self.connection.send_bytes(builder)

    def take(self, job: int, item: Item) -> None:
        """Send one item; the judge may have to be built first, hence the generous limit."""
        self.job, self.judging, self.fresh = job, False, False
        self.expires = time.monotonic() + START_DEADLINE_S
        self.connection.send_bytes(encode(item))

    def kill(self) -> None:
        """End it and what it started; :meth:`reap` collects it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.connection.close()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def reap(self) -> int:
        """Its exit status, after :meth:`kill`."""
        try:
            return self.process.wait(_REAP_DEADLINE_S)
        except subprocess.TimeoutExpired as error:
            raise JudgeError(
                f"judge worker {self.process.pid} did not end within {_REAP_DEADLINE_S} s of SIGKILL: "
                "it hangs in the kernel, look at its mounts and devices"
            ) from error


def _bound_blocking(connection: Connection, seconds: float) -> None:
    """Let the kernel end a read or write that the other side never meets."""
    limit = struct.pack("ll", int(seconds), 0)
    with socket.socket(fileno=os.dup(connection.fileno())) as channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


class JudgePool:
    """Judgements in at most ``config.workers`` processes, in this process when that is 0.

    Not for concurrent callers. Workers start when the first items come and then stay.
    """

    def __init__(self, config: RewardConfig, build: JudgeBuilder) -> None:
        self._config = config
        self._build = build
        self._builder = pickle.dumps(build)
        self._workers: list[_Worker] = []
        self._here: dict[str, JudgeFunction] = {}
        self._closed = False
        self._replaced = 0

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the live workers."""
        return tuple(worker.process.pid for worker in self._workers)

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in order; a worker's death or overrun is a verdict, not an exception.

        Responses are cut to their last ``max_answer_chars`` characters first.

        Raises:
            JudgeError: a judge could not be built, or the pool is closed.
        """
        if self._closed:
            raise JudgeError("the judge pool is closed: build a new one")
        last = self._config.max_answer_chars
        short = [(prompt, response[-last:], reason) for prompt, response, reason in items]
        if self._config.workers == 0:
            return [self._judge_here(item) for item in short]
        verdicts: dict[int, Verdict] = {}
        waiting = deque(range(len(short)))
        try:
            while len(verdicts) < len(short):
                self._assign(waiting, short, verdicts)
                self._collect(short, verdicts)
        finally:
            for worker in [worker for worker in self._workers if worker.job is not None]:
                self._replace(worker)
        return [verdicts[job] for job in range(len(short))]

    def metrics(self) -> dict[str, float]:
        """Live workers, and how many were replaced since the start."""
        return {
            "judge/workers": float(len(self._workers)),
            "judge/replaced_workers": float(self._replaced),
        }

    def close(self) -> None:
        """End all workers, at once and for good."""
        self._closed = True
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.reap()

    def _judge_here(self, item: Item) -> Verdict:
        kind = item[0].kind
        if kind not in self._here:
            try:
                self._here[kind] = self._build(kind)
            except Exception as error:
                raise _not_built(kind, f"{type(error).__name__}: {error}") from error
        return _verdict(self._here[kind], item)

    def _assign(self, waiting: deque[int], items: Sequence[Item], verdicts: dict[int, Verdict]) -> None:
        """Give every idle worker an item, start workers up to the capacity."""
        while waiting:
            worker = next((worker for worker in self._workers if worker.job is None), None)
            if worker is None:
                if len(self._workers) >= self._config.workers:
                    return
                self._workers.append(_Worker(self._builder))
                continue
            if not worker.fresh and worker.connection.poll():  # idle, it has nothing to say: it is gone
                self._replace(worker)
                continue
            job = waiting.popleft()
            try:
                worker.take(job, items[job])
            except OSError as error:
                verdicts[job] = self._fail(worker, items[job], f"could not be reached: {error}")

    def _collect(self, items: Sequence[Item], verdicts: dict[int, Verdict]) -> None:
        """Wait for the next message or the next overrun."""
        busy = [worker for worker in self._workers if worker.job is not None]
        patience = min((worker.expires for worker in busy), default=0.0) - time.monotonic()
        ready = wait([worker.connection for worker in busy], max(0.0, patience))
        for worker in busy:
            job = worker.job
            assert job is not None
            if worker.connection in ready:
                verdict = self._receive(worker, items[job])
                if verdict is not None:
                    verdicts[job] = verdict
            elif time.monotonic() >= worker.expires:
                what = f"overran {self._config.deadline_s} s" if worker.judging else "did not start"
                verdicts[job] = self._fail(worker, items[job], what, Outcome.timeout)

    def _receive(self, worker: _Worker, item: Item) -> Verdict | None:
        try:
            message = worker.connection.recv_bytes()
        except (EOFError, OSError):
            return self._fail(worker, item, "its worker ended")
        if message == _STARTED:
            worker.judging = True
            worker.expires = time.monotonic() + self._config.deadline_s
            return None
        answer = decode(message)
        if isinstance(answer, str):
            raise _not_built(item[0].kind, answer)
        worker.job, worker.expires = None, math.inf
        return answer

    def _fail(self, worker: _Worker, item: Item, what: str, outcome: Outcome = Outcome.failed) -> Verdict:
        status = self._replace(worker)
        return Verdict.failed(item[0].kind, f"{what} (exit status {status})", outcome)

    def _replace(self, worker: _Worker) -> int:
        worker.kill()
        status = worker.reap()
        self._workers[self._workers.index(worker)] = _Worker(self._builder)
        self._replaced += 1
        return status


def _not_built(kind: str, why: str) -> JudgeError:
    return JudgeError(f"the judge of kind {kind!r} could not be built: {why}")


def _verdict(judge: JudgeFunction, item: Item) -> Verdict:
    """Run a judge; what it raises is its failure, told as a value."""
    began = time.perf_counter()
    try:
        verdict = judge(*item)
        score = float(verdict.score)
        parts = {str(name): float(value) for name, value in verdict.parts.items()}
    except Exception as error:  # noqa: BLE001 - a judge is foreign code, its error is this verdict
        return Verdict.failed(item[0].kind, f"{type(error).__name__}: {error}"[:300])
    seconds = time.perf_counter() - began
    if verdict.outcome is Outcome.ok and not math.isfinite(score):
        return Verdict.failed(verdict.judge, f"score {score} is not finite")
    return replace(verdict, score=score, correct=bool(verdict.correct), parts=parts, seconds=seconds)


def serve(channel: int) -> None:
    """The life of a worker: build judges as kinds arrive, judge until the parent ends."""
    _end_with_parent()
    connection = Connection(channel)
    build: JudgeBuilder = pickle.loads(connection.recv_bytes())
    judges: dict[str, JudgeFunction] = {}
    while True:
        try:
            prompt, response, reason = decode(connection.recv_bytes())
        except EOFError:
            return
        if prompt.kind not in judges:
            try:
                judges[prompt.kind] = build(prompt.kind)
            except Exception as error:  # noqa: BLE001 - a factory is foreign code, the parent raises it
                connection.send_bytes(encode(f"{type(error).__name__}: {error}"))
                continue
        connection.send_bytes(_STARTED)
        item = (prompt, response, None if reason is None else FinishReason(reason))
        connection.send_bytes(encode(_verdict(judges[prompt.kind], item)))


def _end_with_parent() -> None:
    """Have the kernel end this process group when the parent closes our standard input.

    Not PR_SET_PDEATHSIG: that fires when the thread that started us ends, and actors judge in threads.
    A thread of our own could not watch either while a judge holds the interpreter.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:
        raise SystemExit("the parent ended first")
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as preference:
        preference.write("1000")  # when memory runs out, a judge shall go before an actor
