"""What is counted, what the summary holds, and what goes on after a resume."""

import json
import subprocess

import pytest

from actors import observer as room
from actors.observer import Observer, git_commit, overlap_seconds
from engine.records.codec import decode, encode
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Trajectory, Verdict
from engine.records.update import UpdateReport
from engine.records.version import PolicyVersion
from engine.records.work import GeneratorReport, Progress

LEDGER = {"tokens": {"masked": {"stale": 1}, "carried_loss": 3}}
REQUIRED = {
    "accuracy_before", "accuracy_after", "updates", "train_seconds", "generated_tokens", "trained_tokens",
    "tokens_per_second", "samples_per_second", "max_staleness_seen", "staleness_histogram",
    "trajectories_with_2_segments", "trajectories_with_2_versions", "swaps_while_decoding", "overlap_seconds",
    "loss_carrying_fraction", "weights_digest", "ledger", "seed", "git_commit",
}


@pytest.fixture
def watch(config, run_folder):
    made = []

    def make():
        made.append(Observer(config, run_folder))
        return made[-1]

    yield make, run_folder
    made[-1].close()


def report(name, tokens, swaps=0, busy=()):
    return GeneratorReport(name, (), PolicyVersion(0, 0), "d", generated_tokens=tokens,
                           swaps_while_decoding=swaps, busy=busy)


def update(updates, staleness, busy=(0.0, 0.0)):
    carried = sum(staleness.values())
    return UpdateReport(PolicyVersion(0, updates), True, carried, {"stale": 2}, {}, staleness, busy)


def fill(observer):
    observer.generated(report("a#1", 10, 1, ((0.0, 2.0), (1.0, 4.0))))
    observer.generated(report("a#1", 25, 3, ((5.0, 5.5),)))
    observer.generated(report("a#2", 5))
    stop, version = FinishReason.stop, PolicyVersion(0, 0)
    observer.delivered([
        Progress(0, 0, 4, 4, version, stop, num_segments=2, num_versions=1, saved_tokens=6),
        Progress(1, 0, 4, 4, version, stop, num_segments=3, num_versions=2),
        Progress(2, 0, 4, 4, version, None, num_segments=5, num_versions=5),
    ])
    observer.updated(update(1, {0: 5, 2: 3}, busy=(3.0, 6.0)), 4, {})


@pytest.mark.parametrize(("left", "right", "seconds"), [
    ([], [(0.0, 1.0)], 0.0),
    ([(0.0, 1.0)], [(1.0, 2.0)], 0.0),
    ([(0.0, 9.0)], [(1.0, 2.0), (3.0, 5.0)], 3.0),
    ([(0.0, 2.0), (3.0, 5.0)], [(1.0, 4.0)], 2.0),
])
def test_overlap_is_the_time_in_both(left, right, seconds):
    assert overlap_seconds(left, right) == overlap_seconds(right, left) == seconds


def test_a_summary_counts_what_happened(watch):
    observer = watch[0]()
    fill(observer)
    summary = observer.summary(1, LEDGER, "digest")
    assert summary.keys() >= REQUIRED
    assert summary["generated_tokens"] == 30, "counts of a generator are cumulative"
    assert summary["swaps_while_decoding"] == 3
    assert summary["trajectories_with_2_segments"] == 2, "only finished ones count"
    assert summary["trajectories_with_2_versions"] == 1
    assert summary["saved_tokens"] == 6
    assert summary["overlap_seconds"] == 1.5, "intervals that overlap count once"
    assert summary["busy_seconds"] == {"a#1": 5.5, "a#2": 0.0, "learner": 3.0}
    assert summary["staleness_histogram"] == {"0": 5, "2": 3}
    assert summary["max_staleness_seen"] == 2
    assert summary["trained_tokens"] == 8
    assert summary["loss_carrying_fraction"] == 0.75
    assert summary["weights_digest"] == "digest"
    assert json.loads(json.dumps(summary)) == summary | {"canary_gap_nats": None}


def test_an_update_writes_one_line_of_metrics_and_verdicts_are_samples(watch):
    make, folder = watch
    observer = make()
    prompt, trajectory = Prompt.ask("p", "1 + 1?", "2"), Trajectory(3, 0, "p", finish_reason=FinishReason.stop)
    observer.judged([
        (prompt, trajectory, ["2"], Verdict(1.0, True, "right", "math")),
        (prompt, trajectory, ["?", "!"], Verdict.failed("math", "worker died")),
    ], {"judge/judged": 2.0, "judge/seconds_mean": float("nan")})
    observer.checkpointed("update-000000", 0.5)
    observer.updated(update(1, {0: 1, 2: 1}), 2, {"replay/tokens": 7.0})
    observer.close()
    (line,) = [json.loads(text) for text in folder.metrics_file.read_text().splitlines()]
    values = line | line.get("values", {})
    assert values["update"] == 1
    assert values["rollout/reward_mean"] == 1.0, "a failed judgement is not reward 0"
    assert values["schedule/staleness_mean_versions"] == 1.0
    assert values["ledger/masked_stale_tokens"] == 2
    assert values["replay/tokens"] == 7.0
    assert (values["judge/judged"], values["checkpoint/seconds"], values["supervise/restarts"]) == (2.0, 0.5, 0)
    assert "judge/seconds_mean" not in values, "the mean of nothing is none"
    rows = [json.loads(text) for text in folder.samples_file.read_text().splitlines()]
    assert [(row["trajectory"], row["text"], row["outcome"]) for row in rows] == [(3, "2", "ok"), (3, "?!", "failed")]
    assert rows[1]["pieces"] == ["?", "!"]


def test_between_two_updates_the_learner_waits(watch):
    observer = watch[0]()
    observer.updated(update(1, {0: 1}, busy=(3.0, 6.0)), 4, {})
    assert "schedule/learner_wait_seconds" not in observer.latest
    observer.updated(update(2, {0: 1}, busy=(6.5, 9.0)), 4, {})
    assert observer.latest["schedule/learner_wait_seconds"] == 0.5


def test_totals_go_on_after_a_resume_and_later_metrics_are_forgotten(watch):
    make, folder = watch
    observer = make()
    fill(observer)
    observer.accuracy[0] = 0.25
    state = decode(encode(observer.state_dict()))
    observer.updated(update(2, {0: 1}), 4, {})
    observer.close()
    again = make()
    again.load_state_dict(state, 1)
    assert [json.loads(line)["update"] for line in folder.metrics_file.read_text().splitlines()] == [1]
    summary = again.summary(1, LEDGER, "")
    assert summary["trained_tokens"] == 8
    assert summary["staleness_histogram"] == {"0": 5, "2": 3}
    assert summary["accuracy_before"] == 0.25
    assert summary["overlap_seconds"] == 1.5
    assert summary["busy_seconds"]["learner"] == 3.0
    assert summary["train_seconds"] >= state["seconds"]
    again.restart()
    assert folder.metrics_file.read_text() == ""


def test_the_commit_says_where_followed_files_differ_from_it(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *words], cwd=tmp_path, check=True,
                       capture_output=True, timeout=60)

    monkeypatch.setattr(room, "_CODE", tmp_path)
    assert git_commit() == "", "outside a checkout"
    git("init")
    (tmp_path / "code.py").write_text("1\n")
    git("add", "code.py")
    git("commit", "-m", "a")
    clean = git_commit()
    assert len(clean) == 40
    (tmp_path / "metrics.jsonl").write_text("what a run writes")
    assert git_commit() == clean
    (tmp_path / "code.py").write_text("2\n")
    assert git_commit() == f"{clean}+changes"

    def slow(command, **_):
        if "status" in command:
            raise subprocess.TimeoutExpired(command, 10)
        return subprocess.CompletedProcess(command, 0, stdout=f"{clean}\n")

    monkeypatch.setattr(room.subprocess, "run", slow)
    assert git_commit() == f"{clean}+unknown"
