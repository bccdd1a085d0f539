"""Options of groups ``cluster`` and ``weights``: where actors live and how weights reach them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from engine.config.base import Config, require


class ClusterKind(Enum):
    """Where actors live."""

    serial = "serial"
    ray = "ray"


class Placement(Enum):
    """Whether generators and learners have devices of their own."""

    disaggregated = "disaggregated"
    colocated = "colocated"


class WeightChannelKind(Enum):
    """How weights travel."""

    shared_memory = "shared_memory"


@dataclass
class WeightsConfig(Config):
    """The weight channel."""

    channel: WeightChannelKind = WeightChannelKind.shared_memory
    bucket_mib: int = 16
    """Bytes sent and verified at once."""
    folder: str = "/dev/shm"
    """Where the shared-memory channel keeps its run-owned folder."""
    deadline_s: float = 60.0
    """Seconds a generator may take from publish to acknowledgement before it is restarted."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.bucket_mib >= 1, "weights.bucket_mib", self.bucket_mib, "give at least 1 MiB")
        require(self.deadline_s > 0, "weights.deadline_s", self.deadline_s, "give seconds above 0")


@dataclass
class ThreadsConfig(Config):
    """Compute threads of each actor; the same in every mode, since they may change bits."""

    generator: int = 2
    learner: int = 2
    evaluator: int = 2

    def validate(self) -> None:
        """See :class:`Config`."""
        for name in ("generator", "learner", "evaluator"):
            value = getattr(self, name)
            require(value >= 1, f"cluster.threads.{name}", value, "give at least 1 thread")


@dataclass
class ClusterConfig(Config):
    """Where actors live, and with what."""

    kind: ClusterKind = ClusterKind.serial
    address: str = "local"
    """local: a private Ray on loopback; or the address of a running cluster."""
    placement: Placement = Placement.disaggregated
    dashboard: bool = True
    """Start the Ray dashboard, on 127.0.0.1."""
    object_store_mib: int = 512
    start_deadline_s: float = 120.0
    """Seconds all actors together may take to answer for the first time."""
    call_deadline_s: float = 600.0
    """Seconds any one call to an actor may take."""
    stall_warning_s: float = 120.0
    """Seconds without a word from an actor that was asked something, after which a sentence and a picture of all
    queues tell of it; 0: none before the deadline."""
    max_restarts: int = 3
    """Restarts of actors within ``restart_window_s`` before the run gives up."""
    restart_window_s: float = 300.0
    generator_cpus: float = 0.0
    """CPUs a generator asks Ray for; 0: it shares."""
    learner_cpus: float = 0.0
    threads: ThreadsConfig = field(default_factory=ThreadsConfig)

    def validate(self) -> None:
        """See :class:`Config`."""
        for name in ("start_deadline_s", "call_deadline_s", "restart_window_s"):
            value = getattr(self, name)
            require(value > 0, f"cluster.{name}", value, "give seconds above 0")
        require(self.stall_warning_s >= 0, "cluster.stall_warning_s", self.stall_warning_s,
                "give seconds, or 0 for no warning before the deadline")
        require(self.object_store_mib >= 80, "cluster.object_store_mib", self.object_store_mib,
                "Ray needs at least 80 MiB")
        require(self.max_restarts >= 0, "cluster.max_restarts", self.max_restarts, "give 0 or more")
