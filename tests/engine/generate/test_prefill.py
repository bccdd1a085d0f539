from __future__ import annotations

from engine.generate.prefill import PATIENCE, may_wait


def test_few_slots_wait_but_not_for_ever() -> None:
    waited = [may_wait(1, PATIENCE + 1, steps) for steps in range(2 * PATIENCE + 1)]
    assert [steps for steps, waits in enumerate(waited) if not waits] == [0, PATIENCE, 2 * PATIENCE]


def test_an_eighth_of_the_slots_does_not_wait() -> None:
    assert not any(may_wait(1, PATIENCE, steps) for steps in range(2 * PATIENCE))
