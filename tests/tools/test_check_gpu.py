from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tools.check_gpu import PARTS, Part, check, run_part

WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{\"answer\": 42}'); print('said'); sys.exit(3)"


def test_a_part_that_fails_keeps_what_it_reported() -> None:
    found = run_part(Part((sys.executable, "-c", WRITES), 60, reports=True), 60, os.environ)
    assert (found["ok"], found["returncode"], found["timed_out"]) == (False, 3, False)
    assert found["report"] == {"answer": 42}
    assert found["output"] == "said\n"


def test_output_that_is_no_text_is_kept_as_far_as_it_is() -> None:
    found = run_part(Part((sys.executable, "-c", "import os; os.write(1, b'a\\xffb')"), 60), 60, os.environ)
    assert (found["ok"], found["output"]) == (True, "a\N{REPLACEMENT CHARACTER}b")


def test_a_late_part_is_ended() -> None:
    found = run_part(Part((sys.executable, "-c", "while True: pass"), 60), 0.5, os.environ)
    assert (found["ok"], found["timed_out"]) == (False, True)


def test_the_next_part_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PARTS, "build", Part((sys.executable, "-c", "raise SystemExit('no nvcc')"), 60))
    monkeypatch.setitem(PARTS, "tests", Part((sys.executable, "-c", "print('fine')"), 60))
    assert not check(tmp_path / "gpu.json", ["build", "tests"], 120)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [found[name]["ok"] for name in ("build", "tests")] == [False, True]
    assert "no nvcc" in capsys.readouterr().out


def test_every_part_fits_the_whole() -> None:
    assert all(0 < part.seconds < 530 for part in PARTS.values())
