"""A reward of your own: how near a response comes to the answer key, letter by letter."""

from difflib import SequenceMatcher

from engine.config.rewards import RewardConfig
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Verdict


class NearJudge:
    """Score 0 to 1, so that a model that never hits still learns to come closer."""

    name = "near"

    def judge(self, prompt: Prompt, response: str, finish_reason: FinishReason | None) -> Verdict:
        """See engine.rewards.judge.Judge; raise where the judge itself cannot work."""
        score = SequenceMatcher(None, response.strip(), prompt.answer_key).ratio()
        return Verdict(score, score == 1.0, f"{score:.0%} alike", self.name)


def build(config: RewardConfig) -> NearJudge:
    """What ``reward.judges.near=docs.examples.near_judge.build`` names."""
    return NearJudge()
