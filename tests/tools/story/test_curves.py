import json

import pytest

from engine.errors import RunFolderError
from tools.story.curves import Curves, Point, bracket, first_reach, read_lines

LINES = [
    {"update": 0, "seconds": 5.0, "heldout/accuracy": 0.2},
    {"update": 1, "seconds": 7.0, "schedule/update_seconds": 2.0, "learn/loss": 1.0},
    {"update": 1, "seconds": 8.5, "heldout/accuracy": 0.6},
    {"update": 2, "seconds": 9.0, "schedule/update_seconds": 2.0, "learn/loss": None},
]


def test_a_torn_last_line_is_left_out_and_a_damaged_one_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_lines(file) == []
    file.write_text('{"update": 1}\n{"update": 2, "sec')
    assert read_lines(file) == [{"update": 1}]
    file.write_text('{"update": 1}\n{"upd\n{"update": 3}\n')
    with pytest.raises(RunFolderError, match="line 2"):
        read_lines(file)


def test_only_a_newline_ends_a_line(tmp_path):
    file, rows = tmp_path / "samples.jsonl", [{"text": "a\u2028b\u2029c\x85d"}, {"text": "e"}]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_lines(file) == rows


def test_training_time_begins_with_the_first_update():
    curves = Curves(LINES)
    assert curves["learn/loss"] == [Point(1, 2.0, 1.0)]
    assert (curves.updates, curves.seconds, curves.mean("learn/loss"), curves.mean("x/y")) == (2, 4.0, 1.0, None)
    assert Curves(LINES[1:])["learn/loss"] == [Point(1, 2.0, 1.0)], "without the evaluation of version 0"


def test_an_evaluation_counts_from_the_commit_of_its_version():
    points = Curves(LINES).at_commit("heldout/accuracy")
    assert [(point.update, point.seconds) for point in points] == [(0, 0.0), (1, 2.0)]
    late = [*LINES[:2], LINES[3], {"update": 2, "seconds": 60.0, "heldout/accuracy": 0.7},
            {"update": 1, "seconds": 90.0, "heldout/accuracy": 0.6}]
    points = Curves(late).at_commit("heldout/accuracy")
    assert [(point.update, point.seconds, point.value) for point in points] == [
        (0, 0.0, 0.2), (1, 2.0, 0.6), (2, 4.0, 0.7)], "however long after training it was evaluated"


@pytest.mark.parametrize(("points", "reached"), [
    ([(0, 0.9)], 0), ([(0, 0.1), (4, 0.5)], 4), ([(0, 0.4), (10, 0.6)], pytest.approx(5)),
    ([(0, 0.1)], None), ([], None), ([(0, 0.6), (1, 0.2)], 0),
])
def test_where_a_curve_first_reaches_a_level(points, reached):
    assert first_reach(points, 0.5) == reached


@pytest.mark.parametrize(("points", "between"), [
    ([(0, 0.9)], (0, 0)), ([(0, 0.1), (4, 0.5)], (0, 4)), ([(0, 0.1), (2, 0.4), (9, 0.6), (12, 0.7)], (2, 9)),
    ([(0, 0.1)], None), ([], None),
])
def test_between_which_points_a_curve_reaches_a_level(points, between):
    assert bracket(points, 0.5) == between
