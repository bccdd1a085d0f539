import torch

from engine.config.cluster import WeightChannelKind, WeightsConfig
from engine.records.version import PolicyVersion
from engine.weights import channel
from engine.weights.channel import open_receiver, open_sender


def test_every_configured_channel_carries_weights(tmp_path):
    for kind in WeightChannelKind:
        config = WeightsConfig(channel=kind, folder=str(tmp_path))
        sender = open_sender(config, "run", torch.bfloat16)
        receiver = open_receiver(config, "run")
        weights = {"a": torch.randn(3, 2)}
        manifest = sender.publish(weights, PolicyVersion(0, 1))
        staged = receiver.receive(manifest)
        assert manifest.channel == kind.value
        assert (staged.version, staged.digest) == (PolicyVersion(0, 1), manifest.digest)
        assert torch.equal(staged.tensors["a"], weights["a"].to(torch.bfloat16))
        sender.retire(PolicyVersion(0, 1))
        receiver.close()
        sender.close()


def test_without_a_dtype_tensors_keep_their_own(tmp_path):
    config = WeightsConfig(folder=str(tmp_path))
    sender = open_sender(config, "run")
    staged = open_receiver(config, "run").receive(sender.publish({"a": torch.ones(2)}, PolicyVersion(0, 1)))
    sender.close()
    assert staged.tensors["a"].dtype is torch.float32


def test_the_front_door_names_everything_callers_need():
    assert all(hasattr(channel, name) for name in channel.__all__)
