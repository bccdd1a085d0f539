"""The sampler's step: one token for every one of 64 slots.

Beside it the same step with the readable references in place of the kernels (``reference``), and a step of the
transformers network over its own cache with a draw from the softmax (``transformers``). All slots decode, in bf16,
behind the same prompts.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import torch

from tools.bench.decode_bound import SETTLING_STEPS, fill_slots
from tools.bench.reference_child import reference_side
from tools.bench.subject import Subject, padded_prompts, requests
from tools.bench.timing import Side, seconds_of, spread, take_turns

_STEPS = 4
"""Of one repeat."""


def own_side(subject: Subject, repeats: int, steps: int = _STEPS) -> Side:
    """Seconds of one step of ours; the sampler is filled first and lasts for so many repeats and a warm-up."""
    slots, budget = subject.amounts.sequences, (repeats + 1) * steps + SETTLING_STEPS
    sampler = subject.sampler(subject.network(), slots, budget)
    fill_slots(sampler, requests(subject.tokens[:slots], 0, budget))

    def run() -> None:
        for _ in range(steps):
            assert not sampler.step(), "a trajectory ended amid the measurement"

    return lambda: seconds_of(run) / steps


class PlainSteps:
    """The network of transformers behind the same prompts."""

    @torch.no_grad()
    def __init__(self, subject: Subject) -> None:
        from transformers import AutoModelForCausalLM

        loader: Any = AutoModelForCausalLM
        self._network = loader.from_pretrained(subject.folder, dtype=torch.bfloat16, local_files_only=True).eval()
        ids, self._mask = padded_prompts(subject, subject.amounts.sequences)
        found = self._network(input_ids=ids, attention_mask=self._mask, use_cache=True, logits_to_keep=1)
        self._cache, self._token = found.past_key_values, found.logits[:, -1].argmax(-1)

    @torch.no_grad()
    def step(self) -> None:
        """One token for every row."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], 1)
        positions = self._mask.sum(1, keepdim=True) - 1
        logits = self._network(
            input_ids=self._token[:, None], attention_mask=self._mask, position_ids=positions,
            past_key_values=self._cache, use_cache=True,
        ).logits[:, -1]
        logprobs = logits.float().log_softmax(-1)
        self._token = torch.multinomial(logprobs.exp(), 1)[:, 0]
        logprobs.gather(-1, self._token[:, None])


def measure(subject: Subject, repeats: int) -> dict[str, Any]:
    """Milliseconds of a step on every side, and how many times quicker ours is."""
    own, plain = own_side(subject, repeats), PlainSteps(subject)
    with closing(reference_side(subject, "sampler", repeats)) as child:
        sides: dict[str, Side] = {
            "perilune": own, "transformers": lambda: seconds_of(plain.step),
            "reference": lambda: float(child.ask()["seconds"]),
        }
        times = take_turns(sides, repeats)
    found: dict[str, Any] = {"sampler_slots": subject.amounts.sequences}
    for name, values in times.items():
        found[f"sampler_step_ms_{name}"] = spread([1e3 * value for value in values])
    for name in ("transformers", "reference"):
        other, mine = (found[f"sampler_step_ms_{side}"]["median"] for side in (name, "perilune"))
        found[f"ratio_sampler_step_vs_{name}"] = other / mine
    return found
