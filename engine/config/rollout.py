"""Options of groups ``rollout`` and ``generator``: how answers are sampled, and by what."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from engine.config.base import Config, require


class GeneratorKind(Enum):
    """Which sampler a generator holds."""

    native = "native"
    vllm = "vllm"


class Precision(Enum):
    """Type of weights and activations."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass
class RepetitionConfig(Config):
    """Stop a response that loops while it is decoded (Kimi k1.5, section 2.6.2)."""

    enabled: bool = True
    max_period_tokens: int = 32
    """Longest loop that is looked for."""
    min_repeats: int = 6
    """Copies of the loop, back to back, that end the response."""
    min_tokens: int = 24
    """Tokens that the copies must cover, so that short words may repeat."""
    penalty: float = 0.0
    """Added to the score of a response that was cut so; 0 or negative."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.max_period_tokens >= 1, "rollout.repetition.max_period_tokens",
                self.max_period_tokens, "give at least 1 token")
        require(self.min_repeats >= 2, "rollout.repetition.min_repeats", self.min_repeats,
                "a repetition needs at least 2 copies")
        require(self.min_tokens >= 1, "rollout.repetition.min_tokens", self.min_tokens,
                "give at least 1 token")
        require(self.penalty <= 0.0, "rollout.repetition.penalty", self.penalty,
                "give 0 or a negative number")


@dataclass
class RolloutConfig(Config):
    """How one group of answers is sampled."""

    samples_per_prompt: int = 8
    """K, trajectories in a group."""
    max_response_tokens: int = 64
    """Length at which a response is truncated."""
    max_prompt_tokens: int = 512
    """A longer prompt is refused before the run starts."""
    temperature: float = 1.0
    top_p: float = 1.0
    """Only 1.0: with a smaller support the recorded log-probs would not be those of the draw."""
    stop_token_ids: list[int] = field(default_factory=list)
    """Further tokens that end a response, besides the tokenizer's end tokens."""
    repetition: RepetitionConfig = field(default_factory=RepetitionConfig)

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.samples_per_prompt >= 1, "rollout.samples_per_prompt",
                self.samples_per_prompt, "give at least 1")
        require(self.max_response_tokens >= 1, "rollout.max_response_tokens",
                self.max_response_tokens, "give at least 1 token")
        require(self.max_prompt_tokens >= 1, "rollout.max_prompt_tokens", self.max_prompt_tokens,
                "give at least 1 token")
        require(self.temperature > 0.0, "rollout.temperature", self.temperature,
                "training samples need a temperature above 0; evaluation is greedy by itself")
        require(self.top_p == 1.0, "rollout.top_p", self.top_p,
                "the sampled support is not recorded yet, so only 1.0 keeps log-probs true")


@dataclass
class VllmConfig(Config):
    """What ``generator.kind=vllm`` needs besides; see docs/vllm.md."""

    enforce_eager: bool = False
    """Neither compile nor capture CUDA graphs: starts in seconds instead of minutes, decodes slower."""
    gpu_memory_utilization: float = 0.4
    """Share of the device's memory for one engine, free when it starts; the evaluator has an engine of its own."""
    kv_cache_gib: float = 0.0
    """Size of the key-value cache; 0: what all slots need at their longest, or what the share leaves where every
    generator and the evaluator have a GPU each."""
    max_num_batched_tokens: int = 0
    """Tokens of one pass, prefill included; 0: vLLM's own choice."""
    prefix_caching: bool = True
    """Requests of one version share the keys of a common prompt."""
    start_timeout_s: float = 600.0
    """Seconds until the engine must decode, sleep, wake, or serve other weights. The first answer of its actor is
    waited for so much longer than ``cluster.start_deadline_s``."""
    step_timeout_s: float = 120.0
    """Seconds without a token, while requests are open, after which the engine counts as dead."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(0.0 < self.gpu_memory_utilization <= 1.0, "generator.vllm.gpu_memory_utilization",
                self.gpu_memory_utilization, "give a share above 0 and up to 1")
        require(self.kv_cache_gib >= 0.0, "generator.vllm.kv_cache_gib", self.kv_cache_gib, "give 0 or more GiB")
        require(self.max_num_batched_tokens >= 0, "generator.vllm.max_num_batched_tokens",
                self.max_num_batched_tokens, "give 0 or more tokens")
        require(self.start_timeout_s > 0.0, "generator.vllm.start_timeout_s", self.start_timeout_s,
                "give seconds above 0")
        require(self.step_timeout_s > 0.0, "generator.vllm.step_timeout_s", self.step_timeout_s,
                "give seconds above 0")


@dataclass
class GeneratorConfig(Config):
    """The sampler inside each generator actor."""

    kind: GeneratorKind = GeneratorKind.native
    num_generators: int = 1
    slots: int = 64
    """Trajectories that decode at once; rows of the key-value cache."""
    context_tokens: int = 0
    """Capacity of a slot in tokens; 0: prompt and response budgets together."""
    prefill_tokens: int = 256
    """Rows of a native prefill pass; a longer prompt is prefilled in chunks of this size. vLLM has
    ``vllm.max_num_batched_tokens`` instead."""
    precision: Precision = Precision.bfloat16
    steps_per_call: int = 8
    """Tokens decoded per slot between two looks at the inbox: the latency of joins and swaps."""
    vllm: VllmConfig = field(default_factory=VllmConfig)

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.num_generators >= 1, "generator.num_generators", self.num_generators,
                "give at least 1")
        require(self.slots >= 1, "generator.slots", self.slots, "give at least 1 slot")
        require(self.context_tokens >= 0, "generator.context_tokens", self.context_tokens,
                "give 0 (prompt and response budgets together) or more tokens")
        require(self.prefill_tokens >= 1, "generator.prefill_tokens", self.prefill_tokens,
                "give at least 1 token")
        require(self.steps_per_call >= 1, "generator.steps_per_call", self.steps_per_call,
                "give at least 1 step")
        batched = self.vllm.max_num_batched_tokens
        require(self.kind is not GeneratorKind.vllm or batched == 0 or batched >= self.slots,
                "generator.vllm.max_num_batched_tokens", batched, f"give 0, or at least generator.slots={self.slots}")
