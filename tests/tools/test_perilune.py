from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import perilune

ROOT = Path(__file__).resolve().parents[2]


def call(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["perilune", *arguments])
    perilune.main()


def test_every_tool_is_a_verb_with_a_line_of_meaning():
    files = {file.stem for file in (ROOT / "tools").glob("*.py")} - {"__init__", "perilune"}
    assert perilune.verbs().keys() == files
    assert all(perilune.verbs().values())


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_verb_it_lists_them(monkeypatch, capsys, arguments):
    call(monkeypatch, *arguments)
    shown = capsys.readouterr().out
    assert "train" in shown
    assert "make_docs" in shown


def test_a_mistyped_verb_is_refused_with_the_nearest(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "trian")
    assert ended.value.code == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_a_verb_receives_its_options(tmp_path):
    command = [sys.executable, "-m", "tools.perilune", "train", "--cfg", "job", "experiment=smoke", "seed=3"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "seed: 3" in ended.stdout
