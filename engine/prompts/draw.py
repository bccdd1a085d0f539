"""The next prompts to ask: a permutation per epoch, a curriculum, or by priority.

Random numbers come from a counter (Philox, keyed by the seed of the run): the permutation of an epoch from
its number, a weighted draw from the number of prompts drawn before it. A resumed draw therefore
continues exactly, without a stored generator state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from engine.config.prompts import PromptOrder, PromptsConfig
from engine.errors import PromptError
from engine.prompts.curriculum import difficulties, hard_mask, only_hard
from engine.prompts.priority import SuccessWindow, priority_weights, weighted_choice
from engine.records.prompt import Prompt

_EPOCH_STREAM, _PRIORITY_STREAM = 1, 2
_UINT64 = 2**64 - 1
_BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class PromptDraw:
    """Chooses prompts; learns success rates from verdicts; leaves quarantined prompts out.

    Args:
        prompts: the training prompts, in a fixed order.
        config: ``order``, ``curriculum`` and ``priority`` count here.
        seed: seed of the run.

    Raises:
        PromptError: no prompts.
    """

    def __init__(self, prompts: Sequence[Prompt], config: PromptsConfig, seed: int) -> None:
        if not prompts:
            raise PromptError("there is nothing to draw from: give at least one training prompt")
        self._prompts = tuple(prompts)
        self._index = {prompt.prompt_id: index for index, prompt in enumerate(self._prompts)}
        self._config = config
        self._seed = seed & _UINT64
        self._window = SuccessWindow(config.priority.window, config.priority.initial_success_rate)
        self._quarantined: set[str] = set()
        self._cursor = 0
        self._epoch = 0
        self._position = 0
        self._deferred: list[int] = []
        self._order = self._permutation(0)

    def draw(self, count: int, updates: int) -> list[Prompt]:
        """The next ``count`` prompts, all different unless fewer are eligible.

        Args:
            count: how many.
            updates: committed updates so far; the curriculum switches by it.

        Raises:
            PromptError: every prompt is quarantined.
        """
        eligible = self._eligible(updates)
        drawn: list[int] = []
        while len(drawn) < count:
            share = min(count - len(drawn), len(eligible))
            if self._config.order is PromptOrder.priority:
                drawn += self._weighted_share(eligible, share)
            else:
                drawn += self._walk_share(set(eligible), share)
            self._cursor += share
        return [self._prompts[index] for index in drawn]

    def observe(self, prompt_id: str, correct_fraction: float, samples: int) -> None:
        """Record the verdicts of one group.

        Args:
            prompt_id: the group's prompt.
            correct_fraction: correct trajectories of the group, 0..1.
            samples: trajectories of the group.

        Raises:
            PromptError: the prompt is not in the set, or the numbers make no fraction.
        """
        self._require_known(prompt_id)
        self._window.observe(prompt_id, correct_fraction, samples)

    def quarantine(self, prompt_id: str) -> None:
        """Never draw this prompt again.

        Raises:
            PromptError: the prompt is not in the set.
        """
        self._require_known(prompt_id)
        self._quarantined.add(prompt_id)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs, as plain data."""
        return {
            "seed": self._seed,
            "prompts": self._set_digest(),
            "cursor": self._cursor,
            "epoch": self._epoch,
            "position": self._position,
            "deferred": [self._prompts[index].prompt_id for index in self._deferred],
            "quarantined": sorted(self._quarantined),
            "windows": self._window.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where :meth:`state_dict` was taken.

        Raises:
            PromptError: the state belongs to other prompts or another seed.
        """
        for key, own in (("seed", self._seed), ("prompts", self._set_digest())):
            if state[key] != own:
                raise PromptError(
                    f"the stored draw has {key} {state[key]!r}, this run has {own!r}: resume with the "
                    "prompts options and the seed of the run that stored it"
                )
        self._cursor = state["cursor"]
        self._epoch = state["epoch"]
        self._position = state["position"]
        self._deferred = [self._index[prompt_id] for prompt_id in state["deferred"]]
        self._quarantined = set(state["quarantined"])
        self._window.load_state_dict(state["windows"])
        self._order = self._permutation(self._epoch)

    def metrics(self) -> dict[str, float]:
        """Scalars: epoch, prompts drawn and quarantined, mean and histogram of observed success rates.

        ``prompts/success_<low>_<high>`` is the fraction of observed prompts in that range of percent.
        The success entries are absent before the first verdict.
        """
        rates = np.array(
            [self._window.rate(p.prompt_id) for p in self._prompts if self._window.observed(p.prompt_id)]
        )
        values = {
            "prompts/epoch": float(self._epoch),
            "prompts/drawn": float(self._cursor),
            "prompts/quarantined": float(len(self._quarantined)),
            "prompts/observed_fraction": rates.size / len(self._prompts),
        }
        if rates.size:
            values["prompts/success_mean"] = float(rates.mean())
            shares = np.histogram(rates, bins=_BINS)[0] / rates.size
            for low, high, share in zip(_BINS, _BINS[1:], shares, strict=False):
                values[f"prompts/success_{round(100 * low)}_{round(100 * high)}"] = float(share)
        return values

    def close(self) -> None:
        """Nothing is held open; part of the grammar of long-lived objects."""

    def _eligible(self, updates: int) -> list[int]:
        active = [i for i, prompt in enumerate(self._prompts) if prompt.prompt_id not in self._quarantined]
        if not active:
            raise PromptError(
                f"all {len(self._prompts)} training prompts are quarantined, each killed two actors: look "
                "at the actors' logs before the prompts"
            )
        by_curriculum = self._config.order is PromptOrder.curriculum
        if not by_curriculum or not only_hard(self._config.curriculum, updates):
            return active
        difficulty = difficulties([self._prompts[i] for i in active], self._window.rate)
        mask = hard_mask(difficulty, self._config.curriculum.hard_quantile)
        return [index for index, hard in zip(active, mask, strict=True) if hard]

    def _weighted_share(self, eligible: list[int], share: int) -> list[int]:
        rates = np.array([self._window.rate(self._prompts[index].prompt_id) for index in eligible])
        weights = priority_weights(rates, self._config.priority.floor)
        generator = self._generator(_PRIORITY_STREAM, self._cursor)
        return [eligible[place] for place in weighted_choice(weights, share, generator)]

    def _walk_share(self, eligible: set[int], share: int) -> list[int]:
        """Go on through the epoch; what this share holds already waits for the next one.

        Only a share that crosses the end of an epoch can meet a prompt twice. Deferring it instead of
        skipping it keeps the promise that an epoch asks every prompt once.
        """
        chosen: dict[int, None] = {}
        waiting, self._deferred = self._deferred, []
        for index in self._candidates(waiting):
            if index in chosen:
                self._deferred.append(index)
            elif index in eligible:
                chosen[index] = None
            if len(chosen) == share:
                break
        # The walk may end among those that waited: the rest of them goes on waiting, in front.
        self._deferred = waiting + self._deferred
        return list(chosen)

    def _candidates(self, waiting: list[int]) -> Iterator[int]:
        while waiting:
            yield waiting.pop(0)
        while True:
            if self._position == len(self._prompts):
                self._epoch += 1
                self._position = 0
                self._order = self._permutation(self._epoch)
            self._position += 1
            yield int(self._order[self._position - 1])

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return self._generator(_EPOCH_STREAM, epoch).permutation(len(self._prompts))

    def _generator(self, stream: int, number: int) -> np.random.Generator:
        # The low word counts the numbers spent, so streams of different numbers never meet.
        counter = np.array([0, 0, number, stream], dtype=np.uint64)
        key = np.array([self._seed, 0], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(counter=counter, key=key))

    def _set_digest(self) -> str:
        return xxhash.xxh3_64("\n".join(prompt.prompt_id for prompt in self._prompts).encode()).hexdigest()

    def _require_known(self, prompt_id: str) -> None:
        if prompt_id not in self._index:
            raise PromptError(
                f"prompt {prompt_id!r} is not among the {len(self._prompts)} training prompts: only "
                "prompts that this draw handed out may be reported"
            )
