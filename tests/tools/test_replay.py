"""What the tool says of a repeated run, and when it is content."""

import sys

import pytest

from tools import replay as tool
from tools.replay import agrees, sentences

REPORT = {"updates": 3, "entries": 9, "recorded_entries": 9, "judged_otherwise": [], "recorded": "aa",
          "repeated": "aa", "parted": "", "complete": True}


@pytest.mark.parametrize(("changes", "content", "says"), [
    ({}, True, "the same weights"),
    ({"repeated": "bb"}, False, "the last weights do not"),
    ({"repeated": "", "complete": False, "parted": "the weights part at update 2, entry 5"}, False, "at update 2"),
    ({"repeated": "", "recorded": "", "complete": False, "entries": 4}, True, "agrees as far as it goes"),
    ({"recorded": ""}, True, "left no summary"),
    ({"judged_otherwise": [4, 5]}, True, "taken as recorded: trajectories [4, 5]"),
])
def test_a_report_in_sentences(changes, content, says):
    report = REPORT | changes
    assert agrees(report) is content
    assert says in "\n".join(sentences(report))
    assert sentences(report)[0].startswith("3 updates agree")


@pytest.mark.parametrize(("repeated", "code"), [("aa", 0), ("bb", 1)])
def test_the_exit_code_says_whether_they_agree(monkeypatch, capsys, tmp_path, repeated, code):
    asked = []
    monkeypatch.setattr(tool, "replay", lambda *paths: asked.append(paths) or REPORT | {"repeated": repeated})
    monkeypatch.setattr(sys, "argv", ["replay", "runs/x", str(tmp_path / "again")])
    with pytest.raises(SystemExit) as ended:
        tool.main()
    assert ended.value.code == code
    assert asked[0][1] == tmp_path / "again"
    assert "recorded digest  aa" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "code", "says"), [
    ([], 2, "usage"), (["{folder}"], 2, "holds no config.yaml"),
])
def test_what_is_no_run_is_refused(monkeypatch, capsys, tmp_path, arguments, code, says):
    monkeypatch.setattr(sys, "argv", ["replay", *(text.format(folder=tmp_path) for text in arguments)])
    with pytest.raises(SystemExit) as ended:
        tool.main()
    assert ended.value.code == code
    assert says in capsys.readouterr().err
