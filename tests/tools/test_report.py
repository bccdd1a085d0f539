import json
import sys

import pytest

from engine.run_folder import FileLock
from tests.tools.run_folders import write_run
from tools import report


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    report.main()


def test_a_page_is_written_beside_the_run_or_where_it_is_wanted(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "run", whole=False)
    call(monkeypatch, folder)
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    said = capsys.readouterr().out
    assert "was cut off" in said
    assert "report.html" in said
    call(monkeypatch, folder, tmp_path / "page.html")
    assert (tmp_path / "page.html").exists()


def test_a_stopped_run_and_a_live_one_say_so(tmp_path, monkeypatch, capsys):
    stopped, live = write_run(tmp_path / "stopped"), write_run(tmp_path / "live", whole=False)
    summary = json.loads((stopped / "summary.json").read_text())
    (stopped / "summary.json").write_text(json.dumps(summary | {"updates": 3}))
    lines = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text("".join(lines[:-2]))
    lock = FileLock.acquire(live / ".lock")
    for folder, told in ((stopped, "stopped at 3 of 4 updates"), (live, "still running: 2 of 4 updates")):
        call(monkeypatch, folder)
        assert told in capsys.readouterr().out
        assert told in (folder / "report.html").read_text()
    lock.release()


def test_another_folder_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, tmp_path)
    assert ended.value.code == 1
    assert "no run folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch)
    assert ended.value.code == 2
