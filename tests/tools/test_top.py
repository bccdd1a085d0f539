"""One frame of a run, alive or not, and when the view ends by itself."""

import io
import json
import sys

import pytest
from rich.console import Console

from tools import top
from tools.top import BARS, frame, sparkline, watch


def seen(folder, now=1000.5):
    console = Console(file=io.StringIO(), width=120)
    picture, runs = frame(folder, now)
    console.print(picture)
    return console.file.getvalue(), runs


def test_a_frame_shows_actors_queues_speed_and_rewards(looked_at):
    shown, runs = seen(looked_at(tokens_per_second=55.4))
    assert runs
    for text in ("running", "update 7/24", "version 0.7", "55 tokens/s", "up 10:00", "1 restarts", "judge#1", "idle",
                 "flying 8", "outstanding 4", "reward 1.000", "staleness 0.50", "length 12.00"):
        assert text in shown, text
    (row,) = [line for line in shown.splitlines() if "generator-0#2" in line]
    assert [cell.strip() for cell in row.strip(row[0]).split(row[0])] == ["generator-0#2", "advance", "5:00", "5"]
    assert sparkline([0.0, 0.25, 0.5, 1.0]) in shown


def test_a_run_that_ended_or_was_cut_off_says_when(looked_at):
    shown, runs = seen(looked_at(live=False), now=99999.0)
    assert not runs
    assert "cut off" in shown
    assert "last sign of life at 00:16:40 UTC" in shown
    assert " 5:00 " in shown, "its actors stand as they stood"
    assert "complete" in seen(looked_at(live=False, state="complete"))[0]


def test_before_the_first_update_there_is_less_to_see(looked_at):
    folder = looked_at(rewards=[], latest={})
    status = json.loads((folder / "status.json").read_text())
    for key in ("queues", "version", "serving", "updates"):
        del status[key]
    (folder / "status.json").write_text(json.dumps(status))
    assert "update 0/24" in seen(folder)[0]


@pytest.mark.parametrize(("values", "shape"), [
    ([], ""), ([2.0], BARS[3]), ([0.0, 1.0], BARS[0] + BARS[7]), ([1.0, 1.0], BARS[3] * 2),
    ([0.0] * 70 + [1.0], BARS[0] * 59 + BARS[7]),
])
def test_a_sparkline_spans_from_the_smallest_to_the_largest(values, shape):
    assert sparkline(values) == shape


def test_the_view_follows_a_run_until_it_ends(looked_at, monkeypatch):
    folder = looked_at()
    frames = []

    def ends_after_three(path, now):
        frames.append(now)
        return frame(path, now)[0], len(frames) < 3

    monkeypatch.setattr(top, "frame", ends_after_three)
    monkeypatch.setattr(top, "EVERY_S", 0.0)
    watch(folder, Console(file=io.StringIO(), width=100))
    assert len(frames) == 3


def test_on_the_command_line(looked_at, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["top", "--once", str(looked_at())])
    top.main()
    assert "update 7/24" in capsys.readouterr().out
    for arguments, code in ((["top"], 2), (["top", str(tmp_path / "none")], 1)):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            top.main()
        assert ended.value.code == code
