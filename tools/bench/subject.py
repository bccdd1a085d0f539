"""The model, the prompts and the amounts of work that all sides share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.launch import compose
from engine.config.model import ScratchConfig
from engine.config.rollout import Precision, RepetitionConfig
from engine.config.schedule import InFlight
from engine.generate.native import NativeSampler
from engine.generate.sampler import Sampler
from engine.models.decoder import Decoder
from engine.models.policy import load_network, published_tensors, save_policy, scratch_network
from engine.models.tokenizer import PolicyTokenizer
from engine.prompts.prompt_set import load_prompts
from engine.records.prompt import Prompt
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, Request

_PREFILL_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much work one repeat is."""

    prompts: int = 8
    samples: int = 8
    update_tokens: int = 48
    """Length of every response of an update."""
    sequences: int = 64
    sequence_tokens: int = 64
    """Length of every generated sequence."""
    trajectories: int = 200_000
    """That go through the controller."""
    learner_tokens: int = 4096
    """Of the packed row of one learner's step, prompts included."""


SMALL = Amounts(2, 2, 6, 4, 6, 400, 256)


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that nobody had to send."""

    version: PolicyVersion
    digest: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """One model folder and how it is exercised: bf16, no stop tokens, temperature 1."""

    folder: Path
    amounts: Amounts
    threads: int

    @cached_property
    def tokenizer(self) -> PolicyTokenizer:
        """Of the folder."""
        return PolicyTokenizer.from_folder(self.folder)

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """Two-term sums, as many as generation needs."""
        count = max(self.amounts.sequences, self.amounts.prompts)
        config, _ = compose(["prompts=sums", f"prompts.num_train={count}", "prompts.num_heldout=1"])
        return load_prompts(config.prompts).train[:count]

    @cached_property
    def tokens(self) -> list[NDArray[np.int32]]:
        """The rendered prompts."""
        return [self.tokenizer.render(prompt) for prompt in self.prompts]

    def chat(self, index: int) -> list[dict[str, str]]:
        """One prompt as other libraries take it."""
        return [{"role": m.role, "content": m.content} for m in self.prompts[index].messages]

    def network(self) -> Any:
        """The learner's network, freshly loaded."""
        return load_network(self.folder, Precision.bfloat16)

    def sampler(self, network: Any, slots: int, response_tokens: int) -> NativeSampler:
        """A sampler under the network's weights that knows no stop token and watches for no loop."""
        context = max(len(tokens) for tokens in self.tokens) + response_tokens
        sampler = NativeSampler(
            Decoder(network.config, torch.bfloat16, context), slots, _PREFILL_TOKENS,
            context_tokens=context, stop_ids=(), repetition=RepetitionConfig(enabled=False), seed=0,
        )
        sampler.swap(weights_of(network, PolicyVersion(0, 0)), InFlight.finish)
        return sampler


def weights_of(network: Any, version: PolicyVersion) -> Weights:
    """The network's weights, as a sampler takes them."""
    return Weights(version, str(version), published_tensors(network))


def requests(prompts: Sequence[NDArray[np.int32]], first_id: int, response_tokens: int) -> list[Request]:
    """One new trajectory for each prompt."""
    nothing = np.zeros(0, np.int32)
    return [Request(first_id + index, 0, tokens, nothing, response_tokens)
            for index, tokens in enumerate(prompts)]


def padded_prompts(subject: Subject, count: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [count, longest] of the first prompts, filled up at the left."""
    prompts = subject.tokens[:count]
    longest = max(len(tokens) for tokens in prompts)
    ids = torch.full((len(prompts), longest), subject.tokenizer.end_id)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(prompts):
        ids[row, longest - len(tokens) :] = torch.from_numpy(tokens)
        mask[row, longest - len(tokens) :] = 1
    return ids, mask


def drain(sampler: Sampler) -> list[Delivery]:
    """Step until every trajectory left; each step brings them nearer to their ends."""
    deliveries = []
    while not sampler.idle:
        deliveries += sampler.step()
    return deliveries


def small_model(folder: Path) -> Path:
    """Write a tiny random model: the harness itself is tried with it."""
    network, tokenizer = scratch_network(ScratchConfig(layers=2, width=64, heads=2, intermediate=96), 0)
    save_policy(network, published_tensors(network), tokenizer, folder)
    return folder
