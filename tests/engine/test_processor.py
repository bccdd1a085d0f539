from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import processor

LINES = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: A: B\n\nprocessor\t: 1\nmodel name\t: C\n"


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """What the system says of its processors; no file at first."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_FACTS", path)
    _forget()
    yield path
    _forget()


def _forget() -> None:
    processor.processor_name.cache_clear()
    processor.processor_vendor.cache_clear()


def test_the_first_processor_speaks_for_all(facts: Path) -> None:
    facts.write_text(LINES)
    assert (processor.processor_name(), processor.processor_vendor()) == ("A: B", "GenuineIntel")


@pytest.mark.parametrize("said", [None, "", "processor\t: 0\nBogoMIPS\t: 48.00\n"])
def test_a_system_that_does_not_say_is_asked_for_its_architecture(facts: Path, said: str | None) -> None:
    if said is not None:
        facts.write_text(said)
    assert processor.processor_name() in (platform.processor(), platform.machine())
    assert processor.processor_name()
    assert processor.processor_vendor() == ""
