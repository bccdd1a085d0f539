"""A driver that only remembers what it is asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import MagicMock

from engine.config.run import RunConfig


@dataclass
class Asked:
    """A call that a part of the driver left open."""

    answer: Callable[[Any], None]
    actor: str
    method: str
    arguments: tuple[Any, ...]
    deadline_s: float | None = None


def changed(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy with values by dotted key; composing one anew takes a while."""
    for key, value in values.items():
        name, _, rest = key.partition(".")
        inner = changed(getattr(config, name), {rest: value}) if rest else value
        config = replace(config, **{name: inner})
    return config


def fake_driver(config: RunConfig) -> Any:
    """Holds the open calls in ``asked``; all else is recorded by mocks."""
    fake = MagicMock()
    fake.config = config
    fake.asked = []
    fake.time_is_up = False
    fake.turns.learning = False
    fake.turns.to_learner = lambda then: then()
    fake.turns.metrics = dict
    fake.later = lambda answer, actor, method, *arguments, deadline_s=None: fake.asked.append(
        Asked(answer, actor, method, arguments, deadline_s)
    )
    return fake
