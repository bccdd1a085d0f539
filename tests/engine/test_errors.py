from __future__ import annotations

import pickle

import pytest

from engine import errors
from engine.errors import ActorError, ConfigError, PeriluneError, nearest_name

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_the_root_and_survives_pickling(cls: type[Exception]) -> None:
    arguments = ("a.key", 3, "do this") if cls in (ConfigError, ActorError) else ("what went wrong",)
    error = cls(*arguments)
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, PeriluneError)
    assert (type(back), str(back), vars(back)) == (cls, str(error), vars(error))


def test_a_config_error_says_key_value_and_remedy() -> None:
    error = ConfigError("loss.tau", -1.0, "give 0 or more")
    assert str(error) == "loss.tau=-1.0: give 0 or more"
    assert isinstance(error, ValueError)


def test_an_actor_error_says_who_what_and_why() -> None:
    error = ActorError("learner", "an update", "no answer in 5 s")
    assert str(error) == "actor learner during an update: no answer in 5 s"
    assert error.actor == "learner"


def test_the_nearest_name_or_all_of_them() -> None:
    assert nearest_name("schedul", ["schedule", "model"]) == "did you mean 'schedule'?"
    assert nearest_name("zzz", ["b", "a"]) == "known: a, b"
