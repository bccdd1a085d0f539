from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest

from engine.records import event
from engine.records.event import Command, Event

MEMBERS = [
    value for value in vars(event).values()
    if isinstance(value, type) and value.__module__ == event.__name__ and value is not event.JudgedItem
]


def test_every_record_is_an_event_or_a_command_and_not_both() -> None:
    events, commands = set(get_args(Event)), set(get_args(Command))
    assert events | commands == set(MEMBERS)
    assert not events & commands


@pytest.mark.parametrize("member", MEMBERS)
def test_they_are_frozen_and_carry_no_tokens(member: Any) -> None:
    assert member.__dataclass_params__.frozen
    assert not any("token" in field.name or np.ndarray.__name__ in str(field.type)
                   for field in dataclasses.fields(member))


def test_equal_content_makes_equal_events() -> None:
    assert event.Dispatch("g", (1, 2)) == event.Dispatch("g", (1, 2))
    assert event.Dispatch("g", (1, 2)) != event.Dispatch("g", (2, 1))
