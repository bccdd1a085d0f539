"""A bound of 0 is a synchronous run, bit for bit, wherever its actors live."""

import pytest

from tests.end_to_end.harness import RAY, train

SHARED = ("cluster.placement=colocated", "evaluation.every=1")
BOUND_ZERO = ("schedule=async", "schedule.max_staleness=0")


@pytest.mark.parametrize("overrides", [
    pytest.param(BOUND_ZERO, id="async-serial"),
    # What a synchronous run over Ray learns is compared every time in test_faults, with three deaths on top.
    pytest.param(RAY, id="sync-ray", marks=[pytest.mark.ray, pytest.mark.slow]),
    # Generators and learner take turns on the same device: who sleeps meanwhile says the same afterwards.
    pytest.param(SHARED, id="sync-serial-colocated"),
    pytest.param((*SHARED, *RAY), id="sync-ray-colocated", marks=[pytest.mark.ray, pytest.mark.slow]),
    pytest.param((*BOUND_ZERO, *RAY), id="async-ray", marks=pytest.mark.ray),
])
def test_bound_zero_equals_sync(tmp_path, undisturbed, overrides):
    summary = train(tmp_path / "run", *overrides)
    assert summary["weights_digest"] == undisturbed["weights_digest"]
    assert summary["ledger"]["tokens"]["carried_loss"] == undisturbed["trained_tokens"] > 0
    assert summary["max_staleness_seen"] == 0


def test_the_policy_really_learns(tmp_path, undisturbed):
    """Otherwise equal digests would say nothing: another seed, or one update less, gives another."""
    digests = {undisturbed["weights_digest"]}
    digests.add(train(tmp_path / "seed", "seed=1")["weights_digest"])
    digests.add(train(tmp_path / "shorter", "learning.updates=2")["weights_digest"])
    assert len(digests) == 3
    assert undisturbed["updates"] == 3
