"""Options of group ``reward``: which judge looks at which kind of prompt, within which limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.config.base import Config, require


@dataclass
class LengthRewardConfig(Config):
    """Shorter correct answers earn more within their group (Kimi k1.5, section 2.3.3)."""

    weight: float = 0.0
    """Factor of the length reward; 0 switches it off."""
    warmup_updates: int = 0
    """Updates without any length reward; afterwards the weight is constant."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.weight >= 0.0, "reward.length.weight", self.weight, "give 0 or a positive number")
        require(self.warmup_updates >= 0, "reward.length.warmup_updates", self.warmup_updates,
                "give 0 or more updates")


@dataclass
class OverlongConfig(Config):
    """Soft punishment of responses near the limit (DAPO, eq. 13)."""

    buffer_tokens: int = 0
    """Width of the zone before the limit in which the punishment grows from 0 to 1; 0: off."""
    factor: float = 1.0
    """Largest punishment."""
    mask_truncated: bool = False
    """Truncated responses carry no loss (DAPO's overlong filtering)."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.buffer_tokens >= 0, "reward.overlong.buffer_tokens", self.buffer_tokens,
                "give 0 (off) or a positive number of tokens")
        require(self.factor >= 0.0, "reward.overlong.factor", self.factor, "give 0 or a positive number")


@dataclass
class RewardConfig(Config):
    """Judges and their limits."""

    judges: dict[str, str] = field(default_factory=dict)
    """Prompt kind -> dotted path of a judge factory; overrides the built-in ones."""
    correct_threshold: float = 1.0
    """A score of at least this much is ``correct``."""
    truncated_score: float = 0.0
    """Score of a response that hit the length limit without an answer that verifies."""
    workers: int = 2
    """Processes of the judge pool; each is killed from outside when it overruns."""
    deadline_s: float = 5.0
    """Seconds one judgement may take before its worker is killed."""
    max_retries: int = 1
    """Further tries after a judge failed or timed out; then the group is dropped."""
    max_answer_chars: int = 4096
    """Longer responses are cut to their last characters before any parser sees them."""
    length: LengthRewardConfig = field(default_factory=LengthRewardConfig)
    overlong: OverlongConfig = field(default_factory=OverlongConfig)

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.workers >= 0, "reward.workers", self.workers,
                "give 0 (judge in the actor itself, only for trusted judges) or more processes")
        require(self.deadline_s > 0, "reward.deadline_s", self.deadline_s, "give seconds above 0")
        require(self.max_retries >= 0, "reward.max_retries", self.max_retries, "give 0 or more")
        require(self.max_answer_chars >= 16, "reward.max_answer_chars", self.max_answer_chars,
                "give at least 16 characters")
