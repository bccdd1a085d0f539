from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.bench.gpu import Report


def test_a_report_that_is_cut_off_keeps_the_last_whole_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = Report(tmp_path / "part.json")
    report.add(one=1)
    report.add(two=2)

    def cut(path: Path, text: str) -> None:
        path.write_bytes(text[:5].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(KeyboardInterrupt):
        report.add(three=3)
    monkeypatch.undo()
    assert json.loads(report.path.read_text()) == {"one": 1, "two": 2}
