"""The planner's command line, over a run folder that a test made."""

import json

import pytest

from tests.end_to_end.harness import train
from tools import plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(folder, "learning.updates=2")
    return folder


def test_it_prints_the_run_itself_and_every_combination(folder, tmp_path, capsys):
    file = tmp_path / "plan.json"
    plan.main([str(folder), "generators=1,2", "schedule=async", "--lengths", "constant:mean=9", "--json", str(file)])
    printed = capsys.readouterr().out
    for text in ("measured", "the same, predicted", "generators=2", "error of the prediction", "machine of its own"):
        assert text in printed
    rows = json.loads(file.read_text())
    assert [row["scenario"]["generators"] for row in rows] == [1, 2]
    assert rows[0]["predicted"]["idle"].keys() == set(plan.ROLES)
    assert rows[0]["itself"]["updates"] == rows[0]["measured"]["updates"] == 2


def test_the_run_alone_tells_how_far_off_it_is(folder, capsys):
    plan.main([str(folder)])
    assert "error of the prediction of the run itself" in capsys.readouterr().out
    assert plan.plan(folder, {}).predicted.updates == 2


@pytest.mark.parametrize("arguments", [
    ["nowhere"], ["FOLDER", "slots"], ["FOLDER", "slot=2"], ["FOLDER", "--lengths", "x"],
])
def test_mistakes_end_in_one_sentence(folder, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        plan.main([str(folder) if one == "FOLDER" else one for one in arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
