from __future__ import annotations

import os
import select
import subprocess
import sys
import time

import pytest

from engine.config.rewards import RewardConfig
from engine.errors import JudgeError
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Outcome, Verdict
from engine.rewards.pool import JudgePool

HANG, EXIT, RAISE, NAN = "hang", "exit", "raise", "nan"


def build(kind: str):
    """A judge that does what the response says; the kind "broken" cannot be built."""
    if kind == "broken":
        raise OSError("no such reward model")
    return obey


def obey(prompt: Prompt, response: str, finish_reason: FinishReason | None) -> Verdict:
    if response == HANG:
        while True:
            9**9**7  # holds the interpreter: no thread or signal handler inside could stop it
    if response == EXIT:
        os._exit(3)
    if response == RAISE:
        raise LookupError("no such word")
    score = float("nan") if response == NAN else float(len(response))
    parts = {"torch": float("torch" in sys.modules), "pid": float(os.getpid())}
    return Verdict(score, False, f"{response[:8]} {finish_reason}", prompt.kind, parts)


def build_slowly(kind: str):
    deadline = time.monotonic() + 0.6
    while time.monotonic() < deadline:
        pass
    return obey


def items(*responses: str, kind: str = "obedient"):
    return [(Prompt.ask(f"p{i}", "?", "key", kind), text, None) for i, text in enumerate(responses)]


@pytest.fixture(scope="module")
def pool():
    pool = JudgePool(RewardConfig(workers=2, deadline_s=0.8, max_answer_chars=16), build)
    yield pool
    pool.close()


def test_verdicts_come_in_order_from_processes_without_torch(pool):
    texts = [str(i) * (i % 8 + 1) for i in range(40)]
    verdicts = pool.judge(items(*texts))
    assert [verdict.score for verdict in verdicts] == [float(len(text)) for text in texts]
    assert {verdict.outcome for verdict in verdicts} == {Outcome.ok}
    assert {int(verdict.parts["pid"]) for verdict in verdicts} <= set(pool.pids)
    assert not any(verdict.parts["torch"] for verdict in verdicts)
    assert all(verdict.seconds >= 0.0 for verdict in verdicts)
    assert pool.judge([]) == []


def test_the_finish_reason_arrives_and_long_responses_keep_their_end(pool):
    prompt = Prompt.ask("p", "?", "key", "obedient")
    (verdict,) = pool.judge([(prompt, "x" * 100_000 + "end", FinishReason.length)])
    assert verdict.score == 16.0
    assert verdict.reason.endswith("length")


@pytest.mark.parametrize(("evil", "outcome"), [(HANG, Outcome.timeout), (EXIT, Outcome.failed)])
def test_a_judge_that_hangs_or_dies_is_replaced_and_capacity_stays(pool, evil, outcome):
    before = pool.metrics()["judge/replaced_workers"]
    verdicts = pool.judge(items("a", evil, evil, evil, "bb"))
    assert [v.outcome for v in verdicts] == [Outcome.ok, outcome, outcome, outcome, Outcome.ok]
    assert [verdicts[0].score, verdicts[4].score] == [1.0, 2.0]
    assert len(pool.pids) == 2
    assert pool.metrics()["judge/replaced_workers"] == before + 3
    again = pool.judge(items("a", "bb", "ccc", "dddd"))
    assert [v.score for v in again] == [1.0, 2.0, 3.0, 4.0]


def test_what_a_judge_raises_is_a_failed_verdict_and_no_reward(pool):
    before = pool.pids
    raised, not_finite = pool.judge(items(RAISE, NAN))
    assert (raised.outcome, raised.reason) == (Outcome.failed, "LookupError: no such word")
    assert not_finite.outcome is Outcome.failed
    assert raised.score != raised.score
    assert pool.pids == before


def test_a_worker_that_died_while_idle_is_replaced_unnoticed(pool):
    pool.judge(items("a", "b"))
    victim = pool.pids[0]
    handle = os.pidfd_open(victim)
    os.kill(victim, 9)
    assert select.select([handle], [], [], 10)[0]
    os.close(handle)
    assert [v.outcome for v in pool.judge(items(*"abcdef"))] == [Outcome.ok] * 6
    assert victim not in pool.pids
    assert len(pool.pids) == 2


def test_a_judge_that_cannot_be_built_raises_and_the_pool_goes_on(pool):
    with pytest.raises(JudgeError, match="'broken' could not be built: OSError: no such reward model"):
        pool.judge(items("a", "b", kind="broken"))
    assert [v.score for v in pool.judge(items("a", "bb"))] == [1.0, 2.0]


def test_building_a_judge_does_not_count_against_the_deadline():
    pool = JudgePool(RewardConfig(workers=1, deadline_s=0.3), build_slowly)
    try:
        assert pool.judge(items("a"))[0].outcome is Outcome.ok
    finally:
        pool.close()


def test_closing_ends_every_process():
    pool = JudgePool(RewardConfig(workers=2), build)
    pool.judge(items("a", "b", "c"))
    pids = pool.pids
    assert pids
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(JudgeError, match="closed"):
        pool.judge(items("a"))
    pool.close()


def test_without_workers_the_judge_runs_here():
    pool = JudgePool(RewardConfig(workers=0, max_answer_chars=16), build)
    good, raised = pool.judge(items("x" * 50, RAISE))
    assert good.score == 16.0
    assert good.parts["pid"] == os.getpid()
    assert raised.outcome is Outcome.failed
    with pytest.raises(JudgeError, match="no such reward model"):
        pool.judge(items("a", kind="broken"))
    assert pool.pids == ()
    pool.close()


ORPHANING = """
import os, signal, sys, threading
sys.path[:] = {path!r}
from engine.config.rewards import RewardConfig
from engine.records.prompt import Prompt
from engine.rewards.pool import JudgePool
from {module} import HANG, build

pool = JudgePool(RewardConfig(workers=1, deadline_s=60.0), build)
prompt = Prompt.ask("p", "?", "", "obedient")
pool.judge([(prompt, "a", None)])
print(pool.pids[0], flush=True)
sys.stdin.readline()
threading.Thread(target=pool.judge, args=([(prompt, HANG, None)],), daemon=True).start()
while pool._workers[0].judging is False or pool._workers[0].job is None:
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_busy_worker_ends_with_its_parent():
    script = ORPHANING.format(path=sys.path, module=__name__)
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        handle = os.pidfd_open(int(parent.stdout.readline()))
        parent.stdin.write("go\n")
        parent.stdin.flush()
        assert select.select([handle], [], [], 10)[0], "the worker outlived its parent"
        os.close(handle)
