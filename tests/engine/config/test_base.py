from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from engine.config.base import Config, as_dict, require
from engine.errors import ConfigError


class Colour(Enum):
    light_red = "light red"


@dataclass
class Inner(Config):
    size: int = 1

    def validate(self) -> None:
        require(self.size > 0, "outer.inner.size", self.size, "give more")


@dataclass
class Outer(Config):
    inner: Inner = field(default_factory=Inner)
    colour: Colour = Colour.light_red
    many: list[Inner] = field(default_factory=lambda: [Inner(2), Inner(3)])
    named: dict[str, Colour] = field(default_factory=lambda: {"a": Colour.light_red})


def test_validation_runs_when_built() -> None:
    with pytest.raises(ConfigError, match=r"outer.inner.size=0: give more"):
        Inner(0)


def test_an_option_that_nobody_knows_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no such option; did you mean 'colour'"):
        Outer().color = 1  # type: ignore[attr-defined]


def test_options_are_sealed_once_built() -> None:
    outer = Outer()
    with pytest.raises(ConfigError, match="sealed"):
        outer.colour = Colour.light_red
    with pytest.raises(ConfigError, match="sealed"):
        outer.inner.size = 5
    assert outer.inner.size == 1


def repickled(config: Any) -> Any:
    return pickle.loads(pickle.dumps(config))


@pytest.mark.parametrize("again", [copy.deepcopy, repickled, dataclasses.replace])
def test_copies_are_equal_and_sealed(again: Callable[[Any], Any]) -> None:
    twin = again(Outer())
    assert twin == Outer()
    with pytest.raises(ConfigError, match="sealed"):
        twin.inner = Inner(2)


def test_replace_validates_anew() -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(Inner(), size=0)


def test_as_dict_is_plain() -> None:
    assert as_dict(Outer()) == {
        "inner": {"size": 1}, "colour": "light red", "many": [{"size": 2}, {"size": 3}],
        "named": {"a": "light red"},
    }


def test_the_whole_configuration_loads_without_torch_or_numpy() -> None:
    code = (
        "import sys, engine.config.run as r; r.RunConfig();"
        "print([m for m in ('torch', 'numpy', 'transformers', 'hydra') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.strip() == "[]"
