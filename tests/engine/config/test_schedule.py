from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.config.schedule import ScheduleConfig

ITERATIVE = {"kind": "iterative", "max_staleness": 2}


@pytest.mark.parametrize(("options", "key"), [
    ({"kind": "lazy"}, "schedule.kind"),
    ({"kind": "async", "max_staleness": -1}, "schedule.max_staleness"),
    ({"kind": "sync", "max_staleness": 1}, "schedule.max_staleness"),
    ({"kind": "iterative", "max_staleness": 0}, "schedule.max_staleness"),
    ({"kind": "sync", "round_budget_tokens": 8}, "schedule.round_budget_tokens"),
    ({"kind": "async", "round_budget_tokens": -1}, "schedule.round_budget_tokens"),
    ({"batch_groups": 0}, "schedule.batch_groups"),
    ({**ITERATIVE, "batch_groups": 4, "min_groups": 5}, "schedule.min_groups"),
    ({"min_groups": -1}, "schedule.min_groups"),
    ({"steps_per_update": 0}, "schedule.steps_per_update"),
    ({"batch_groups": 2, "steps_per_update": 3}, "schedule.steps_per_update"),
    ({"max_attempts": 0}, "schedule.max_attempts"),
], ids=str)
def test_what_cannot_work_is_refused(refused: Callable[..., None], options: dict[str, Any],
                                     key: str) -> None:
    refused(ScheduleConfig, options, key)


@pytest.mark.parametrize(("options", "rounds", "cut", "fewest"), [
    ({}, True, None, 8),
    ({"kind": "async"}, True, None, 8),
    ({"kind": "async", "round_budget_tokens": 16}, True, None, 8),
    ({"kind": "async", "max_staleness": 1, "round_budget_tokens": 16, "min_groups": 2}, False, 16, 8),
    ({**ITERATIVE, "round_budget_tokens": 16, "min_groups": 2}, True, 16, 2),
    ({**ITERATIVE}, True, None, 8),
])
def test_what_follows_from_the_numbers(options: dict[str, Any], rounds: bool, cut: int | None,
                                       fewest: int) -> None:
    config = ScheduleConfig(**options)
    assert (config.rounds, config.cut_tokens, config.fewest_groups) == (rounds, cut, fewest)


@pytest.mark.parametrize(("budget", "response", "rounds"), [
    (0, 64, 1), (16, 64, 4), (16, 65, 5), (16, 1, 1),
])
def test_rounds_of_the_longest_response(budget: int, response: int, rounds: int) -> None:
    assert ScheduleConfig(**ITERATIVE, round_budget_tokens=budget).rounds_of(response) == rounds
