"""Checkpoints that are whole or not there.

A checkpoint is one folder: its parts and a ``manifest.json`` with size and xxh3-128 of every file, its
place in the order of writing, and a digest of itself. It is written under ``.tmp-<name>-<pid>``, every file
and folder is forced to disk, then it is renamed; so a kill at any moment leaves the checkpoints before it
untouched, and what is damaged later is refused by name. No pickle anywhere.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from engine.errors import CheckpointError
from engine.run_folder import fsync_path, is_disk_full

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
_TEMPORARY = ".tmp-"
_CHUNK_BYTES = 8 * 2**20
_log = logging.getLogger(__name__)

Part = bytes | Callable[[Path], None]
"""The bytes of a file, or a function that writes a file or a folder at the path it is given."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One verified checkpoint; parts are read when asked for."""

    folder: Path
    meta: Mapping[str, Any]
    """What the writer said of it, plain JSON data."""
    sequence: int
    """Order of writing within the root, from 1."""

    def path(self, name: str) -> Path:
        """Where a part lies, a file or a folder.

        Raises:
            CheckpointError: the checkpoint has no such part.
        """
        path = self.folder / name
        if not path.exists():
            raise CheckpointError(
                f"checkpoint {self.folder} has no part {name!r}: written by another version?"
            )
        return path

    def read(self, name: str) -> bytes:
        """The bytes of a part.

        Raises:
            CheckpointError: the checkpoint has no such part, or it cannot be read.
        """
        path = self.path(name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"part {name!r} of checkpoint {self.folder}: {error}") from error


def write_checkpoint(
    folder: Path,
    parts: Mapping[str, Part],
    meta: Mapping[str, Any],
    on_stage: Callable[[str], None] | None = None,
) -> Path:
    """Write one checkpoint atomically; returns the folder that now stands.

    Args:
        folder: the name it should carry; where that is taken, ``-2``, ``-3``, ... is appended, since
            nothing that stands is ever written over.
        parts: file name to content.
        meta: plain JSON data kept in the manifest.
        on_stage: told ``written`` (all on disk, not yet named) and ``renamed``; tests kill there.

    Raises:
        CheckpointError: the disk is full or refuses; nothing is left behind.
    """
    root = folder.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        temporary = root / f"{_TEMPORARY}{folder.name}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _write_parts(
                temporary, parts, meta, sequence=1 + max(map(_sequence_of, _folders(root)), default=0)
            )
            _tell(on_stage, "written")
            final = _free_name(folder)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        fsync_path(root)
    except OSError as error:
        raise _write_error(folder, error) from error
    _tell(on_stage, "renamed")
    return final


def newest_checkpoint(root: Path) -> Path:
    """The checkpoint of ``root`` that was written last and verifies.

    Damaged ones are skipped, each named in a warning. Leftovers of dead writers are removed.

    Raises:
        CheckpointError: there is none, or all are damaged; the message names them.
    """
    _remove_leftovers(root)
    damaged = []
    # One whose manifest is unreadable may be the newest: it is tried, and so named, first.
    for folder in sorted(_folders(root), key=lambda f: _sequence_of(f) or math.inf, reverse=True):
        try:
            return read_checkpoint(folder).folder
        except CheckpointError as error:
            _log.warning("checkpoint skipped: %s", error)
            damaged.append(str(error))
    found = "; ".join(damaged) or "it holds none"
    raise CheckpointError(f"no whole checkpoint in {root}: {found}. Start anew with another run.dir")


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint after verifying every byte of it.

    Raises:
        CheckpointError: the manifest or a file is missing, of another size, digest or format; it is named.
    """
    body = _read_manifest(path)
    for name, (size, digest) in body["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path} is damaged: {name} is missing")
        if (found := file.stat().st_size) != size:
            raise CheckpointError(
                f"checkpoint {path} is damaged: {name} has {found} bytes, expected {size}"
            )
        if _digest(file) != digest:
            raise CheckpointError(
                f"checkpoint {path} is damaged: the bytes of {name} do not match its digest"
            )
    return Checkpoint(path, body["meta"], body["sequence"])


def prune(root: Path, keep: int) -> list[Path]:
    """Remove all but the ``keep`` newest checkpoints, oldest first; returns what went.

    Damaged ones are neither counted nor removed: somebody will want to look at them. Only manifest and file
    sizes are looked at here.
    """
    assert keep >= 1, f"keep={keep}: at least the newest must stay"
    whole = sorted((folder for folder in _folders(root) if _looks_whole(folder)), key=_sequence_of)
    removed = whole[:-keep]
    for folder in removed:
        # Renamed first: a kill amid the removal must not leave half a checkpoint under a good name.
        doomed = root / f"{_TEMPORARY}{folder.name}-{os.getpid()}"
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return removed


def _tell(on_stage: Callable[[str], None] | None, stage: str) -> None:
    if on_stage is not None:
        on_stage(stage)


def _write_parts(
    temporary: Path, parts: Mapping[str, Part], meta: Mapping[str, Any], sequence: int
) -> None:
    temporary.mkdir()
    for name, part in parts.items():
        plain = bool(name) and name == Path(name).name and name != MANIFEST and not name.startswith(".")
        assert plain, f"part {name!r} must be a plain file name other than {MANIFEST}"
        if isinstance(part, bytes):
            (temporary / name).write_bytes(part)
        else:
            part(temporary / name)
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    body = {
        "files": {f.relative_to(temporary).as_posix(): [f.stat().st_size, _digest(f)] for f in files},
        "meta": dict(meta),
        "sequence": sequence,
    }
    (temporary / MANIFEST).write_bytes(_encode_manifest(body))
    folders = [path for path in temporary.rglob("*") if path.is_dir()]
    for path in (*files, temporary / MANIFEST, *folders, temporary):
        fsync_path(path)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _encode_manifest(body: Mapping[str, Any]) -> bytes:
    digest = xxhash.xxh3_128_hexdigest(_canonical(body))
    return _canonical({"body": body, "digest": digest, "format": FORMAT_VERSION})


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest's body; every byte of the file is accounted for."""
    file = path / MANIFEST
    try:
        data = file.read_bytes()
        content = json.loads(data)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} is damaged: no {MANIFEST} ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {MANIFEST} is not JSON ({error})") from error
    if isinstance(content, dict) and content.get("format", FORMAT_VERSION) != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format {content['format']!r} in {MANIFEST}, this version reads "
            f"{FORMAT_VERSION}: resume with the version that wrote it"
        )
    body = content.get("body") if isinstance(content, dict) else None
    if not isinstance(body, dict) or data != _encode_manifest(body):
        raise CheckpointError(f"checkpoint {path} is damaged: {MANIFEST} does not match its own digest")
    return body


def _digest(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _sequence_of(folder: Path) -> int:
    """Order of writing; 0 where the manifest cannot tell."""
    try:
        return int(_read_manifest(folder)["sequence"])
    except CheckpointError:
        return 0


def _looks_whole(folder: Path) -> bool:
    try:
        files = _read_manifest(folder)["files"].items()
        return all((folder / name).stat().st_size == size for name, (size, _) in files)
    except (CheckpointError, OSError):
        return False


def _free_name(folder: Path) -> Path:
    candidate, count = folder, 1
    while candidate.exists():
        count += 1
        candidate = folder.with_name(f"{folder.name}-{count}")
    return candidate


def _remove_leftovers(root: Path) -> None:
    """Remove temporary folders whose writer no longer lives."""
    for entry in root.glob(f"{_TEMPORARY}*-*"):
        pid = entry.name.rpartition("-")[2]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(entry, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_error(folder: Path, error: OSError) -> CheckpointError:
    if is_disk_full(error):
        return CheckpointError(
            f"no room for checkpoint {folder} ({error.strerror}): free the disk or lower "
            "learning.keep_checkpoints; earlier checkpoints are untouched"
        )
    return CheckpointError(f"checkpoint {folder} cannot be written: {error}; earlier ones are untouched")
