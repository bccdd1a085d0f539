"""What a learner is among others: its rank, how the ranks meet, and what becomes of an error in one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.config.run import RunConfig
from engine.errors import ActorError, RankError
from engine.faults import reach
from engine.learn.step import LearnerCore
from engine.models.device import torch_device
from engine.models.policy import DTYPES, load_network, with_adapter
from engine.models.ranks import ALONE, LOOPBACK, Store, join
from engine.models.sharding import checkpoint_layers, shard, working_weights
from engine.trace import span
from engine.weights.kept import keep
from engine.weights.layout import take_part


def together(method: Callable[..., Any]) -> Callable[..., Any]:
    """What all ranks do side by side: the loss of one of them is a death of the learner."""

    @wraps(method)
    def asked(self: LearnerRank, *arguments: Any) -> Any:
        torch.set_num_threads(self.threads)
        try:
            with self.ranks.collective(method.__name__):
                return method(self, *arguments)
        except RankError as error:
            raise ActorError(self.name, method.__name__, str(error)) from error

    return asked


def _node_address() -> str:
    """The address under which the other nodes of the cluster know this one."""
    import ray

    address: str = ray.util.get_node_ip_address()
    return address


class LearnerRank:
    """Holds the policy, or some rows of all its weights, and what it takes to optimise them."""

    core: LearnerCore
    """There once the ranks have joined; of an only learner at once."""

    def __init__(self, config: RunConfig, folder: str, rank: int, kept: str = "") -> None:
        """Load the policy.

        Args:
            config: of the run.
            folder: Hugging Face folder of the first weights.
            rank: among ``learning.num_learners``.
            kept: folder for the weights of versions that are evaluated at the end; empty: none are kept.
        """
        learning = config.learning
        self._kept = kept
        self.config = config
        self.rank = rank
        self.name = learning.learner_names[rank]
        self.threads = config.cluster.threads.learner
        torch.set_num_threads(self.threads)
        network = load_network(folder, learning.precision)
        if config.model.adapter.rank:
            network = with_adapter(network, config.model.adapter)
        if learning.gradient_checkpointing:
            checkpoint_layers(network)
        self._network = network
        self._fixed = load_network(folder, learning.precision) if config.loss.kl_coefficient else None
        self._store: Store | None = None
        self.ranks = ALONE
        if learning.num_learners == 1:
            self._begin()

    @property
    def leads(self) -> bool:
        """Whether this is the rank that publishes and answers."""
        return self.rank == 0

    def meet(self) -> str:
        """Open the place where the ranks meet, on rank 0; its address."""
        learning = self.config.learning
        host = LOOPBACK if self.config.cluster.address == "local" else _node_address()
        self._store = Store(host, learning.num_learners, learning.rank_deadline_s)
        return self._store.address

    def join(self, address: str) -> None:
        """Meet the other ranks, and share the weights out among them.

        Raises:
            ActorError: not all of them came in time.
        """
        learning, device = self.config.learning, torch_device(self.config.cluster.device).type
        try:
            self.ranks = join(address, self.rank, learning.num_learners, learning.rank_deadline_s, device,
                              self._store)
        except RankError as error:
            raise ActorError(self.name, "join", str(error)) from error
        self._begin()
        reach(f"{self.name}.join")

    def _begin(self) -> None:
        dtype = DTYPES[self.config.learning.precision]
        network = shard(self._network, self.ranks, dtype)
        fixed = None if self._fixed is None else shard(self._fixed, self.ranks, dtype, trained=False)
        self.core = LearnerCore(network, self.config, fixed, self.ranks)

    def keep_due(self) -> None:
        """Write the weights of a version that is evaluated once training has ended; a collective of several ranks."""
        every, version = self.config.evaluation.every, self.core.version
        if not self._kept or not every or version.updates % every:
            return
        with span("keep"):
            if self.leads:
                keep(Path(self._kept), self.weights(), DTYPES[self.config.generator.precision], version)
            else:
                take_part(self.weights())

    def weights(self) -> Mapping[str, Tensor]:
        """Name -> tensor as generators receive it; to read one is a collective of several ranks."""
        return working_weights(self.core.network, self.ranks, DTYPES[self.config.learning.precision])
