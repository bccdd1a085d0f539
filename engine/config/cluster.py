"""Options of groups ``cluster`` and ``weights``: where actors live and how weights reach them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from engine.config.base import Config, require

SHARED_GPUS = "NCCL_MULTI_RANK_GPU_ENABLE"
"""Environment variable: at 1 NCCL lets several of its ranks share a GPU; all of them must have it."""


class ClusterKind(Enum):
    """Where actors live."""

    serial = "serial"
    ray = "ray"


class Placement(Enum):
    """Whether generators and learners have devices of their own."""

    disaggregated = "disaggregated"
    colocated = "colocated"


class Device(Enum):
    """What computes: the processor, a GPU, or a GPU where there is one."""

    cpu = "cpu"
    cuda = "cuda"
    auto = "auto"


class WeightChannelKind(Enum):
    """How weights travel."""

    shared_memory = "shared_memory"
    object_store = "object_store"
    nccl = "nccl"
    cuda_ipc = "cuda_ipc"
    dotted = "dotted"


class KeptIn(Enum):
    """Where the learner of channel nccl keeps the versions it sends."""

    host = "host"
    device = "device"


@dataclass
class WeightsConfig(Config):
    """The weight channel."""

    channel: WeightChannelKind = WeightChannelKind.shared_memory
    bucket_mib: int = 16
    """Bytes sent and verified at once."""
    folder: str = "/dev/shm"
    """Where channels shared_memory and cuda_ipc keep their run-owned folder."""
    deadline_s: float = 60.0
    """Seconds a generator may take to receive a version before it is restarted."""
    gather_s: float = 0.5
    """Seconds the first receiver of a version waits in channel nccl for the others that took the one before."""
    host: str = "127.0.0.1"
    """Where the learner of channel nccl awaits its receivers; route: the address that other machines reach it at."""
    kept_in: KeptIn = KeptIn.host
    """Memory in which channel nccl keeps what it sends; device: quicker, at up to three versions of GPU memory."""
    path: str = ""
    """package.module.name of a channel of your own, for channel=dotted."""

    def validate(self) -> None:
        """See :class:`Config`."""
        require(self.bucket_mib >= 1, "weights.bucket_mib", self.bucket_mib, "give at least 1 MiB")
        require(self.deadline_s > 0, "weights.deadline_s", self.deadline_s, "give seconds above 0")
        require(0 <= self.gather_s <= self.deadline_s / 2, "weights.gather_s", self.gather_s,
                "give seconds from 0 to half of weights.deadline_s")
        require(bool(self.host), "weights.host", self.host, "give an address of this machine, or route")
        require((self.channel is WeightChannelKind.dotted) == bool(self.path), "weights.path", self.path,
                "give package.module.name, with weights.channel=dotted and with no other")


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
class ActorResources(Config):
    """What one actor asks Ray for; 0 of a resource: it shares what its node has."""

    cpus: float = 0.0
    gpus: float = 0.0
    custom: dict[str, float] = field(default_factory=dict)
    """Resources that nodes were started with (``ray start --resources``), by name."""

    def validate(self) -> None:
        """See :class:`Config`."""
        for name, amount in {"cpus": self.cpus, "gpus": self.gpus, **self.custom}.items():
            require(amount >= 0, f"cluster.resources.*.{name}", amount, "give 0 or more")


@dataclass
class ResourcesConfig(Config):
    """What the actors of each role ask Ray for, each of them."""

    learner: ActorResources = field(default_factory=ActorResources)
    generator: ActorResources = field(default_factory=ActorResources)
    evaluator: ActorResources = field(default_factory=ActorResources)
    judge: ActorResources = field(default_factory=ActorResources)
    replay: ActorResources = field(default_factory=ActorResources)


@dataclass
class ClusterConfig(Config):
    """Where actors live, and with what."""

    kind: ClusterKind = ClusterKind.serial
    address: str = "local"
    """local: a private Ray on loopback; auto: the cluster that runs here; or host:port of a running one."""
    device: Device = Device.cpu
    """Where generators, evaluator and learner compute; auto: on a GPU where their process sees one."""
    placement: Placement = Placement.disaggregated
    """disaggregated: devices of their own, generators spread over nodes, learners packed; colocated: generators
    and learners take turns on the same devices."""
    dashboard: bool = True
    """Start the Ray dashboard, on 127.0.0.1."""
    object_store_mib: int = 512
    start_deadline_s: float = 120.0
    """Seconds that actors may wait for their place in the cluster, and then for each other's first answer; one that
    holds vLLM may take ``generator.vllm.start_timeout_s`` more."""
    call_deadline_s: float = 600.0
    """Seconds any one call to an actor may take."""
    stall_warning_s: float = 120.0
    """Seconds without a word from an actor that was asked something, after which a sentence and a picture of all
    queues tell of it; 0: none before the deadline."""
    max_restarts: int = 3
    """Restarts of actors within ``restart_window_s`` before the run gives up."""
    restart_window_s: float = 300.0
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    threads: ThreadsConfig = field(default_factory=ThreadsConfig)

    @property
    def joined(self) -> bool:
        """Whether a cluster is joined that runs already, whose actors may live on other machines."""
        return self.kind is not ClusterKind.serial and self.address != "local"

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
        is_url = "://" in self.address
        require(not is_url and (self.address in ("local", "auto") or ":" in self.address), "cluster.address",
                self.address, "give local, auto, or host:port of a running cluster's head"
                + (", not the URL of its dashboard or of Ray's client" if is_url else ""))
        asked = self.resources
        gpus = asked.learner.gpus + asked.generator.gpus + asked.evaluator.gpus
        require(self.placement is not Placement.colocated or gpus <= 1, "cluster.placement", "colocated",
                f"learner, generator and evaluator share one GPU but ask for {gpus:g}: give fractions of at most 1 "
                "together, such as cluster.resources.learner.gpus=0.5")
