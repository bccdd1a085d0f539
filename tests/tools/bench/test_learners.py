from __future__ import annotations

from pathlib import Path

import pytest

from tools.bench import learners
from tools.bench.subject import SMALL, Subject, small_model


class Told:
    """Stands for the ranks."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.closed = seconds, False

    def ask(self) -> dict[str, float]:
        return {"seconds": self.seconds, "tokens": 7.0}

    def close(self) -> None:
        self.closed = True


def test_the_sides_take_turns_and_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {1: Told(3.0), 2: Told(2.0)}
    monkeypatch.setattr(learners, "learners", lambda _, count: sides[count])
    found = learners.measure(Subject(tmp_path, SMALL, 2), 2)
    assert found["ratio_update_of_2_learners_vs_1"] == 1.5
    assert found["update_of_2_learners"] == {"tokens": 7.0}
    assert found["update_seconds_1_learners"]["repeats"] == 2
    assert all(side.closed for side in sides.values())


@pytest.mark.slow
def test_two_learners_make_the_update_of_one(tmp_path: Path) -> None:
    found = learners.measure(Subject(small_model(tmp_path), SMALL, 2), 1)
    assert found["update_of_1_learners"]["tokens"] == found["update_of_2_learners"]["tokens"] > 0
    assert found["update_of_2_learners"]["learn/rank_tokens_min"] > 0
    assert found["ratio_update_of_2_learners_vs_1"] > 0
