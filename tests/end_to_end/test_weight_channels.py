"""A run learns the same, bit for bit, by whatever channel its weights travel."""

import pytest

from tests.end_to_end.harness import RAY, train

OBJECTS = ("weights=object_store",)
PATH = "tests.engine.weights.socket_channel.CHANNEL"
SOCKETS = ("weights.channel=dotted", f"weights.path={PATH}", "weights.gather_s=0.05")
FAR = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("overrides", [
    pytest.param(OBJECTS, id="object_store-serial"),
    pytest.param(SOCKETS, id="broadcast-serial"),
    pytest.param((*OBJECTS, *RAY), id="object_store-ray", marks=FAR),
    pytest.param((*SOCKETS, *RAY), id="broadcast-ray", marks=FAR),
])
def test_the_channel_changes_no_bit(tmp_path, undisturbed, overrides):
    summary = train(tmp_path / "run", *overrides)
    assert summary["weights_digest"] == undisturbed["weights_digest"]
