"""A reward of your own: the right answer, and no more than it takes to say it."""

from engine.config.rewards import RewardConfig
from engine.records.prompt import Prompt
from engine.records.trajectory import FinishReason, Verdict


class BriefJudge:
    """Score 1 for a response that is the answer key itself, 0.5 for one that ends with it, else 0."""

    name = "brief"

    def judge(self, prompt: Prompt, response: str, finish_reason: FinishReason | None) -> Verdict:
        """See engine.rewards.judge.Judge; raise where the judge itself cannot work."""
        said = response.strip()
        score = 1.0 if said == prompt.answer_key else 0.5 * said.endswith(prompt.answer_key)
        return Verdict(score, score == 1.0, "brief" if score == 1.0 else "wordy or wrong", self.name)


def build(config: RewardConfig) -> BriefJudge:
    """What ``reward.judges.brief=docs.examples.brief_judge.build`` names."""
    return BriefJudge()
