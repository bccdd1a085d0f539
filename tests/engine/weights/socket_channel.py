"""The protocol of channel nccl over sockets, as a channel of one's own: ``weights.path`` names this module."""

from types import SimpleNamespace

from engine.weights.broadcast import BroadcastReceiver, BroadcastSender
from tests.engine.weights.socket_communicators import SocketCommunicators


def sender(config, run_id, dtype):
    return BroadcastSender(config, "sockets", SocketCommunicators(), dtype)


def receiver(config, run_id):
    return BroadcastReceiver(config, "sockets", SocketCommunicators())


CHANNEL = SimpleNamespace(sender=sender, receiver=receiver)
