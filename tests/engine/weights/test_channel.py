import pytest
import torch

from engine.config.cluster import WeightChannelKind, WeightsConfig
from engine.errors import ConfigError, WeightChannelError
from engine.records.version import PolicyVersion
from engine.weights import channel
from engine.weights.channel import open_receiver, open_sender
from engine.weights.object_store import LocalStore

NEEDS_GPU = (WeightChannelKind.nccl, WeightChannelKind.cuda_ipc)


class Own:
    """A channel of somebody's own: the weights in a dictionary."""

    made: tuple = ()

    @staticmethod
    def sender(config, run_id, dtype):
        Own.made = (config.path, run_id, dtype)
        return open_sender(WeightsConfig(channel=WeightChannelKind.object_store), run_id, dtype, LocalStore())

    @staticmethod
    def receiver(config, run_id):
        return open_receiver(WeightsConfig(channel=WeightChannelKind.object_store), run_id, LocalStore())


@pytest.mark.parametrize("kind", [kind for kind in WeightChannelKind if kind not in NEEDS_GPU], ids=lambda k: k.value)
def test_every_configured_channel_carries_weights(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("engine.rewards.judge.resolve_dotted", lambda path, key: Own)
    config = WeightsConfig(channel=kind, folder=str(tmp_path), path="a.b" if kind is WeightChannelKind.dotted else "")
    store = LocalStore()
    sender = open_sender(config, "run", torch.bfloat16, store)
    receiver = open_receiver(config, "run", store)
    weights = {"a": torch.randn(3, 2)}
    manifest = sender.publish(weights, PolicyVersion(0, 1))
    staged = receiver.receive(manifest)
    assert manifest.channel == ("object_store" if kind is WeightChannelKind.dotted else kind.value)
    assert (staged.version, staged.digest) == (PolicyVersion(0, 1), manifest.digest)
    assert torch.equal(staged.tensors["a"], weights["a"].to(torch.bfloat16))
    sender.retire(PolicyVersion(0, 1))
    receiver.close()
    sender.close()


@pytest.mark.parametrize("kind", NEEDS_GPU, ids=lambda kind: kind.value)
def test_a_channel_on_gpus_says_what_it_lacks(kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for opened in (open_sender, open_receiver):
        with pytest.raises(WeightChannelError, match=f"weights.channel={kind.value} needs a GPU"):
            opened(WeightsConfig(channel=kind), "run")


def test_a_path_that_leads_nowhere_is_refused():
    config = WeightsConfig(channel=WeightChannelKind.dotted, path="engine.weights.nothing.here")
    with pytest.raises(ConfigError, match=r"weights\.path"):
        open_sender(config, "run")


def test_without_a_dtype_tensors_keep_their_own(tmp_path):
    config = WeightsConfig(folder=str(tmp_path))
    sender = open_sender(config, "run")
    staged = open_receiver(config, "run").receive(sender.publish({"a": torch.ones(2)}, PolicyVersion(0, 1)))
    sender.close()
    assert staged.tensors["a"].dtype is torch.float32


def test_the_front_door_names_everything_callers_need():
    assert all(hasattr(channel, name) for name in channel.__all__)
