"""What the doctor says of runs that live, hang, ended and were cut off."""

import json
import sys

import pytest

from engine.errors import RunFolderError
from tools import doctor
from tools.doctor import diagnose

STALL = {"at": 808.0, "passed": "warning", "actor": "generator-0#2", "sentence": "generator-0#2 has not answered",
         "groups": [{"group": 3, "members": [[9, "flying", "generator-0#2", 4], [10, "judged", "", 9]]},
                    {"group": 5, "members": [[12, "flying", "generator-0#2", 0]]}]}


def text(folder, now=1000.2):
    return "\n".join(diagnose(folder, now))


def test_a_live_run_that_waits_says_for_whom_and_since_when(looked_at):
    found = text(looked_at())
    assert "live, process 77, update 7/24, version 0.7, as of 0.2 s ago" in found
    assert "generator-0#2 has not answered advance for 312 s, asked at 00:11:28 UTC" in found
    assert "its last answer, to advance, came 300 s ago" in found
    assert "replay" not in found, "half a second is no wait"
    assert "held: 8 flying trajectories, 4 outstanding groups" in found
    assert "generator-0#2 serves weights 2 versions behind" in found
    assert "no stall was written down" in found


def test_a_driver_that_says_nothing_is_named(looked_at):
    found = text(looked_at(), now=1060.0)
    assert "the driver has said nothing for 60 s: it is inside advance of generator-0#2, or process 77" in found


def test_a_run_whose_process_is_gone_was_cut_off(looked_at):
    found = text(looked_at(live=False), now=9999.0)
    assert found.startswith("cut off at update 7/24, version 0.7; its last sign of life was at 00:16:40 UTC")
    assert "generator-0#2 has not answered advance for 312 s" in found
    assert "driver has said nothing" not in found


def test_a_complete_run_has_nothing_open(looked_at):
    found = text(looked_at(live=False, state="complete"))
    assert found.splitlines()[0].startswith("complete at update 7/24")
    assert "has not answered" not in found


def test_stalls_are_read_back_with_what_they_held_up(looked_at):
    folder = looked_at()
    (folder / "stalls").mkdir()
    for number in range(7):
        (folder / "stalls" / f"{number:03d}-x.json").write_text(json.dumps(STALL | {"at": 800.0 + number}))
    found = text(folder)
    assert "7 stalls were written" in found
    assert found.count("warning: generator-0#2 has not answered; it held 2 trajectories of groups 3, 5") == 5


def test_a_torn_stall_is_left_out(looked_at):
    folder = looked_at()
    (folder / "stalls").mkdir()
    (folder / "stalls" / "000-x.json").write_text(json.dumps(STALL)[:40])
    (folder / "stalls" / "001-x.json").write_text(json.dumps(STALL))
    assert "000-x.json is torn and is left out" in text(folder)
    assert text(folder).count("generator-0#2 has not answered; it held") == 1


def test_a_run_that_is_starting_says_so(looked_at):
    folder = looked_at()
    status = json.loads((folder / "status.json").read_text())
    for key in ("queues", "version", "updates", "serving"):
        del status[key]
    (folder / "status.json").write_text(json.dumps(status))
    assert "no driver yet" in text(folder)
    assert "update 0/24, starting" in text(folder)


def test_on_the_command_line(looked_at, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["doctor", str(looked_at())])
    doctor.main()
    assert "process 77" in capsys.readouterr().out
    for arguments, code in ((["doctor"], 2), (["doctor", str(tmp_path / "none")], 1)):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            doctor.main()
        assert ended.value.code == code
    with pytest.raises(RunFolderError):
        diagnose(tmp_path / "none")
