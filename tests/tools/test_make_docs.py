from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest

from engine.config.base import as_dict
from engine.config.learning import ClippedConfig
from engine.config.run import RunConfig
from engine.metrics import DOCUMENTED
from tools import make_docs


def leaves(tree: Any, prefix: str = "") -> set[str]:
    """Dotted keys of everything that is no group."""
    if isinstance(tree, dict) and tree:
        return {leaf for key, value in tree.items() for leaf in leaves(value, f"{prefix}.{key}")}
    return {prefix.removeprefix(".")}


def test_the_committed_pages_are_current():
    stale = [file.name for file, text in make_docs.pages().items() if file.read_text() != text]
    assert stale == [], "run `make docs`"


def test_every_key_is_documented():
    page = make_docs.configuration_page()
    groups = {name: value for name, value in as_dict(RunConfig()).items() if isinstance(value, dict)}
    keys = leaves(groups) | leaves({"loss": as_dict(ClippedConfig())})
    assert [key for key in sorted(keys) if f"| `{key}` |" not in page] == []


def test_a_row_holds_type_default_and_meaning():
    page = make_docs.configuration_page()
    assert ("| `schedule.max_staleness` | int | `0` | Bound on trained minus sampled version, in versions, for "
            "every token that carries loss. |") in page
    assert "| `run.exists` | `refuse`, `resume`, `overwrite` | `\"refuse\"` |" in page


def test_texts_under_fields_are_inherited():
    texts = make_docs.field_texts(ClippedConfig)
    assert texts["clip_low"] == "The ratio may fall to 1 - clip_low."
    assert "GRPO" in texts["normalise_std"]


def test_every_metric_is_on_its_page():
    page = make_docs.metrics_page()
    assert [name for name in DOCUMENTED if f"| `{name}` |" not in page] == []


def test_every_group_of_the_configuration_has_its_section():
    page = make_docs.configuration_page()
    hints = get_type_hints(RunConfig)
    groups = [field.name for field in fields(RunConfig) if is_dataclass(hints[field.name])]
    assert [name for name in groups if f"\n## {name}\n" not in page] == []


def test_check_names_what_is_out_of_date_and_writes_nothing(tmp_path, monkeypatch, capsys):
    stale = make_docs.ROOT / "docs" / "no_such_page.md"
    monkeypatch.setattr(make_docs, "pages", lambda: {stale: "text"})
    monkeypatch.setattr(sys, "argv", ["make_docs", "--check"])
    with pytest.raises(SystemExit) as ended:
        make_docs.main()
    assert ended.value.code == 1
    assert "no_such_page.md" in capsys.readouterr().out
    assert not stale.exists()
