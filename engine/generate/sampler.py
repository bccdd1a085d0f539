"""What any sampler can be asked; the native one and those over other engines answer the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from engine.config.schedule import InFlight
from engine.records.version import PolicyVersion
from engine.records.work import Delivery, Request


class StagedWeights(Protocol):
    """Verified weights of one version, ready to be swapped in."""

    @property
    def version(self) -> PolicyVersion:
        """Of these weights."""

    @property
    def digest(self) -> str:
        """As verified."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Name -> tensor, tied names included."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a sampler promises beyond the protocol; whoever depends on it asks."""

    counter_streams: bool
    """The random number of a token depends on run, trajectory, attempt and position alone: a trajectory that
    was cut continues its stream anywhere."""
    equal_bits: bool
    """Neither neighbours nor the moment of joining change a bit of a trajectory: the same work gives the same
    tokens and log-probs again, so async at bound 0 equals sync, and a resumed run the uninterrupted one."""


class Sampler(Protocol):
    """Continues trajectories. One step is one token for every occupied slot.

    Between two steps requests may join, slots may be cut and weights may be swapped; nothing else
    changes what a trajectory will say.
    """

    abilities: Abilities
    version: PolicyVersion
    """Of the weights that sample the next token."""
    digest: str

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; they take slots in the order given."""

    def step(self) -> list[Delivery]:
        """Sample one token for every ready slot; return the trajectories that left theirs."""

    def cut_all(self) -> list[Delivery]:
        """Cut every occupied slot into segments and hand back what waits, without new tokens."""

    def swap(self, staged: StagedWeights, mode: InFlight) -> None:
        """Serve these weights from the next token on; ``finish`` waits until all slots are empty."""

    def sleep(self) -> None:
        """Free cache and weights of the device, for others that compute there; every slot must be empty."""

    def wake(self) -> None:
        """Take the memory again; nothing is sampled before weights are swapped in."""

    @property
    def idle(self) -> bool:
        """Nothing decodes and nothing waits."""

    @property
    def swap_pending(self) -> bool:
        """Newer weights wait for the slots to empty."""

    @property
    def open_requests(self) -> int:
        """Requests in a slot or waiting for one."""

    @property
    def tokens_in_slots(self) -> int:
        """Sampled tokens that are not delivered yet."""

    @property
    def decode_steps(self) -> int:
        """Steps that sampled a token: of an engine that runs ahead as many as it took."""

    def metrics(self) -> dict[str, float]:
        """Cumulative counters: decode steps, sampled and prefilled tokens, occupancy, swaps, saved tokens."""

    def state_dict(self) -> dict[str, Any]:
        """What survives a restart: counters only, since slots are cut before a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""

    def close(self) -> None:
        """Free the cache."""
