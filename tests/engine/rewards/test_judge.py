from __future__ import annotations

import math
from pathlib import Path

import pytest

from engine.config.rewards import RewardConfig
from engine.errors import ConfigError, JudgeError
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Outcome, Verdict
from engine.rewards.judge import Rewarder, build_judge, resolve_dotted


class HalfJudge:
    name = "half"

    def judge(self, prompt: Prompt, response: str, finish_reason: FinishReason | None) -> Verdict:
        return Verdict(0.5, True, "half", self.name, {"style": 0.25})


class FlakyJudge:
    """Fails while the file named by the answer key is missing, and makes it."""

    name = "flaky"

    def judge(self, prompt: Prompt, response: str, finish_reason: FinishReason | None) -> Verdict:
        seen = Path(prompt.answer_key)
        if not seen.exists():
            seen.touch()
            raise ConnectionError("reward model away")
        return Verdict(1.0, True, "", self.name)


class AbsentJudge:
    name = "absent"

    def judge(self, prompt: Prompt, response: str, finish_reason: FinishReason | None) -> Verdict:
        return Verdict.failed(self.name, "away")


def half(config: RewardConfig) -> HalfJudge:
    return HalfJudge()


def flaky(config: RewardConfig) -> FlakyJudge:
    return FlakyJudge()


def absent(config: RewardConfig) -> AbsentJudge:
    return AbsentJudge()


def no_judge(config: RewardConfig) -> int:
    return 3


def here(name: str) -> str:
    return f"{__name__}.{name}"


def asked(response: str, reason: FinishReason | None = FinishReason.stop, key="5", kind="exact"):
    return Prompt.ask("p", "?", key, kind), response, reason


def test_kinds_choose_the_judge():
    config = RewardConfig(judges={"half": here("half"), "exact": here("half")})
    assert build_judge("math", config).name == "math"
    assert build_judge("half", config).name == "half"
    assert build_judge("exact", config).name == "half"
    assert build_judge("exact", RewardConfig()).name == "exact"
    assert build_judge("task:chain_sum", config).name == "task:chain_sum"


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'math'"):
        build_judge("maths", RewardConfig())
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        Rewarder(RewardConfig(workers=0)).judge([asked("5", kind="exat")])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere", "give package.module.attribute"),
        ("no_such_package.judges.mine", "cannot import no_such_package.judges"),
        ("math.florr", "did you mean 'floor'"),
        (".half", "give package.module.attribute"),
    ],
)
def test_a_wrong_dotted_path_says_why_before_any_process_starts(path, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Rewarder(RewardConfig(judges={"mine": path}))
    assert caught.value.key == "reward.judges.mine"
    with pytest.raises(ConfigError, match=words):
        resolve_dotted(path)


def test_a_factory_must_return_a_judge():
    config = RewardConfig(judges={"mine": here("no_judge")}, workers=0)
    with pytest.raises(ConfigError, match="returned a int"):
        build_judge("mine", config)
    with pytest.raises(JudgeError, match="returned a int"):
        Rewarder(config).judge([asked("5", kind="mine")])


def test_judges_of_several_kinds_in_workers():
    config = RewardConfig(workers=2, judges={"half": here("half")}, correct_threshold=0.9)
    rewarder = Rewarder(config)
    try:
        sum_entry = '{"question": "2 + 3 =", "answer": "5", "metadata": {}}'
        verdicts = rewarder.judge(
            [
                asked("Answer: 5"),
                asked(r"\boxed{\frac{10}{2}}", kind="math"),
                asked("anything", kind="half"),
                asked("2 + 3 = 5.", key=sum_entry, kind="task:chain_sum"),
            ]
        )
        assert [v.score for v in verdicts] == [1.0, 1.0, 0.5, 1.0]
        assert [v.correct for v in verdicts] == [True, True, False, True]
        assert [v.judge for v in verdicts] == ["exact", "math", "half", "task:chain_sum"]
        metrics = rewarder.metrics()
        assert (metrics["judge/judged"], metrics["judge/correct"]) == (4.0, 3.0)
        assert metrics["judge/seconds_mean"] > 0.0
    finally:
        rewarder.close()
    with pytest.raises(JudgeError):
        rewarder.judge([asked("5")])


def test_correct_follows_the_threshold_and_the_raw_score():
    for threshold, correct in ((0.5, True), (0.51, False)):
        config = RewardConfig(workers=0, judges={"half": here("half")}, correct_threshold=threshold)
        (verdict,) = Rewarder(config).judge([asked("", kind="half")])
        assert verdict.correct is correct


def test_truncated_responses_get_the_truncated_score_unless_they_verify():
    rewarder = Rewarder(RewardConfig(workers=0, truncated_score=-0.25))
    wrong, right, stopped = rewarder.judge(
        [
            asked("Answer: 6", FinishReason.length),
            asked("Answer: 5", FinishReason.length),
            asked("Answer: 6", FinishReason.stop),
        ]
    )
    assert (wrong.score, wrong.correct, wrong.parts) == (-0.25, False, {"raw": 0.0})
    assert (right.score, right.correct) == (1.0, True)
    assert stopped.score == 0.0


def test_looping_responses_are_punished_and_never_correct():
    rewarder = Rewarder(RewardConfig(workers=0), repetition_penalty=-0.5)
    right, wrong = rewarder.judge(
        [asked("Answer: 5", FinishReason.repetition), asked("Answer: 6", FinishReason.repetition)]
    )
    assert (right.score, right.correct, right.parts) == (0.5, False, {"raw": 1.0})
    assert (wrong.score, wrong.correct) == (-0.5, False)


def test_parts_of_the_judge_stay():
    config = RewardConfig(workers=0, judges={"half": here("half")})
    (verdict,) = Rewarder(config, -1.0).judge([asked("", FinishReason.repetition, kind="half")])
    assert verdict.parts == {"style": 0.25, "raw": 0.5}


def test_failed_judgements_are_tried_again(tmp_path):
    config = RewardConfig(workers=1, max_retries=1, judges={"flaky": here("flaky")})
    rewarder = Rewarder(config)
    try:
        verdicts = rewarder.judge([asked("", key=str(tmp_path / "seen"), kind="flaky"), asked("Answer: 5")])
    finally:
        rewarder.close()
    assert [v.outcome for v in verdicts] == [Outcome.ok, Outcome.ok]
    assert rewarder.metrics()["judge/retries"] == 1.0


def test_a_failing_verdict_is_returned_as_it_is():
    config = RewardConfig(workers=0, max_retries=2, judges={"absent": here("absent")})
    rewarder = Rewarder(config, repetition_penalty=-1.0)
    (verdict,) = rewarder.judge([asked("", FinishReason.repetition, kind="absent")])
    assert (verdict.outcome, verdict.reason, verdict.judge) == (Outcome.failed, "away", "absent")
    assert math.isnan(verdict.score)
    metrics = rewarder.metrics()
    assert (metrics["judge/retries"], metrics["judge/outcome_failed"]) == (2.0, 1.0)
    assert math.isnan(metrics["judge/seconds_mean"])


def test_counters_survive_a_resume():
    rewarder = Rewarder(RewardConfig(workers=0))
    rewarder.judge([asked("Answer: 5"), asked("6")])
    resumed = Rewarder(RewardConfig(workers=0))
    resumed.load_state_dict(rewarder.state_dict())
    assert resumed.metrics() == rewarder.metrics()
    resumed.judge([asked("Answer: 5")])
    assert resumed.metrics()["judge/judged"] == 3.0
