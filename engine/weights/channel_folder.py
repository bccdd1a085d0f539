"""The folder of one run in which a channel on one machine keeps its files, owned by the sender.

``<weights.folder>/perilune-<run_id>`` and the lock ``perilune-<run_id>.lock`` beside it, which dies with the sender: a
folder whose lock is free is a dead run's leftover.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.config.cluster import WeightsConfig
from engine.errors import WeightChannelError
from engine.records.version import PolicyVersion
from engine.run_folder import FileLock

_PREFIX = "perilune-"


def clean_leftovers(folder: Path) -> list[str]:
    """Remove the folders of runs whose writer is dead; a living run holds its lock and is left alone.

    Returns:
        Names of the folders that went. Those of other users are skipped.
    """
    found = {entry.name.removesuffix(".lock") for entry in folder.glob(f"{_PREFIX}*")}
    cleaned = []
    for name in sorted(found):
        try:
            lock = FileLock.acquire(folder / f"{name}.lock")
        except PermissionError:
            continue
        if lock is not None:
            shutil.rmtree(folder / name, ignore_errors=True)
            lock.release(remove=True)
            cleaned.append(name)
    return cleaned


def folder_of_run(config: WeightsConfig, run_id: str) -> Path:
    """Where sender and receivers of a run meet."""
    return Path(config.folder).absolute() / f"{_PREFIX}{run_id}"


def own_folder(config: WeightsConfig, run_id: str) -> FileLock:
    """Make the run's folder; the lock that owns it, and that removes nothing when it is released.

    Raises:
        WeightChannelError: the folder cannot be written, or another living process sends for this run.
    """
    folder = folder_of_run(config, run_id)
    try:
        return _make(folder, run_id)
    except OSError as error:
        raise WeightChannelError(
            f"weights.folder={config.folder!r} cannot be used ({error}): give a writable folder"
        ) from error


def _make(folder: Path, run_id: str) -> FileLock:
    clean_leftovers(folder.parent)
    lock_file = folder.with_name(f"{folder.name}.lock")
    lock = FileLock.acquire(lock_file)
    if lock is None:
        raise WeightChannelError(
            f"run {run_id} already sends weights from process {FileLock.owner(lock_file)}: "
            "stop that process first"
        )
    try:
        folder.mkdir()
    except OSError:
        lock.release(remove=True)
        raise
    return lock


@contextmanager
def held_for_reading(path: Path, version: PolicyVersion) -> Iterator[int]:
    """A file of the sender, held so that the sender leaves it, and what it stands for, alone; gives its descriptor.

    Raises:
        WeightChannelError: the version was retired, or the file cannot be opened.
    """
    gone = WeightChannelError(
        f"version {version} is gone from {path.parent}: it was retired or its run ended; ask for the current manifest"
    )
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise gone from None
    except OSError as error:
        raise WeightChannelError(f"version {version}: cannot open {path}: {error}") from error
    try:
        try:  # shared with other readers; the next version may lie in it by now
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            stands = os.path.samestat(os.fstat(fd), path.stat())
        except (BlockingIOError, FileNotFoundError):
            stands = False
        if not stands:
            raise gone
        yield fd
    finally:
        os.close(fd)
