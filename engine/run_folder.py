"""What a run leaves on disk, owned by one process at a time.

::

    config.yaml  summary.json  metrics.jsonl  trace.json  samples.jsonl (+ samples.1.jsonl)  ledger.msgpack
    arrivals.msgpack  checkpoints/  first_weights/  model/  rollouts/  status.json  stalls/  evaluations/

``config.yaml`` is the marker: only a folder that carries one is resumed or overwritten, so a mistyped
``run.dir`` costs nobody a file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from engine.config.run import Exists, RunSection
from engine.errors import RunFolderError

MARKER = "config.yaml"
_OWN = {".lock", ".run_id", f".{MARKER}.tmp", ".run_id.tmp"}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCK_ATTEMPTS = 100


def is_disk_full(error: OSError) -> bool:
    """True where the error means that no more bytes fit: disk, quota or file-size limit."""
    return error.errno in _FULL


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the file system of ``path``."""
    stats = os.statvfs(path)
    return stats.f_bavail * stats.f_frsize


def fsync_path(path: Path) -> None:
    """Force a file's bytes, or a folder's names, onto the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that a reader, or a crash, sees the old bytes or the new ones, never a mixture.

    Raises:
        OSError: the bytes did not fit or the folder is not writable; the old file still stands.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


class FileLock:
    """An exclusive flock on a file; the kernel drops it when its process dies, however it dies."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd
        # A forked worker that outlives a killed run must not keep the lock.
        os.register_at_fork(after_in_child=self.release)

    @classmethod
    def acquire(cls, path: Path) -> FileLock | None:
        """The lock, or None where a living process holds it; never waits.

        Raises:
            OSError: the file cannot be created.
        """
        for _ in range(_LOCK_ATTEMPTS):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = os.fstat(fd)
                # Another owner may have unlinked the file between open and flock: a lock on a
                # nameless file would exclude nobody.
                if path.exists() and os.path.samestat(mine, path.stat()):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                    return cls(path, fd)
            except BlockingIOError:
                os.close(fd)
                return None
            except OSError:
                os.close(fd)
                raise
            os.close(fd)
        return None

    @staticmethod
    def owner(path: Path) -> str:
        """Process id that the lock file names, or ``unknown``."""
        try:
            return path.read_text().strip() or "unknown"
        except OSError:
            return "unknown"

    def release(self, remove: bool = False) -> None:
        """Let go; ``remove`` unlinks the file first. Twice is harmless."""
        if self._fd is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = None


class RunFolder:
    """The folder of one run, locked while it is open.

    Example:
        >>> import tempfile
        >>> folder = RunFolder.open(RunSection(dir=tempfile.mkdtemp()))
        >>> folder.samples_file.name
        'samples.jsonl'
        >>> folder.close()
    """

    def __init__(self, path: Path, section: RunSection, lock: FileLock, resumed: bool) -> None:
        self.path = path
        self.resumed = resumed
        """True where an earlier life of the same run lies here."""
        self._lock = lock
        self._max_sample_bytes = section.max_sample_mib * 2**20
        self.config_file = path / MARKER
        self.metrics_file = path / "metrics.jsonl"
        self.trace_file = path / "trace.json"
        self.ledger_file = path / "ledger.msgpack"
        self.arrivals_file = path / "arrivals.msgpack"
        self.samples_file = path / "samples.jsonl"
        self.summary_file = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.rollouts = path / "rollouts"
        with self._naming_errors():
            for folder in (self.checkpoints, self.model, self.rollouts):
                folder.mkdir(exist_ok=True)
            _cut_torn_line(self.samples_file)
            self._run_id = _read_or_make_run_id(path)

    @classmethod
    def open(cls, section: RunSection) -> RunFolder:
        """Create, resume or overwrite ``section.dir`` as ``section.exists`` says, and lock it.

        A folder that is missing or empty starts fresh under every value.

        Raises:
            RunFolderError: it exists and ``refuse`` is set, is no run folder, is in use, or cannot be
                written.
        """
        path = Path(section.dir).expanduser().absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = FileLock.acquire(path / ".lock")
        except OSError as error:
            raise RunFolderError(
                f"run.dir={section.dir!r} cannot be written ({error.strerror}): choose a folder in which "
                "this user may create files"
            ) from error
        if lock is None:
            raise RunFolderError(
                f"run.dir={section.dir!r} is in use by process {FileLock.owner(path / '.lock')}: wait for "
                "it, stop it, or choose another run.dir"
            )
        try:
            resumed = _prepare(path, section)
            return cls(path, section, lock, resumed)
        except OSError as error:
            lock.release()
            raise RunFolderError(f"{path}: {error.strerror}; make the folder writable") from error
        except RunFolderError:
            lock.release(remove=True)  # a folder that is left alone is left as it was
            raise

    @property
    def run_id(self) -> str:
        """Short name of this run: digest of the absolute path and a part drawn once; survives a resume."""
        return self._run_id

    def write_config(self, text: str) -> None:
        """Write ``config.yaml`` atomically; from now on the folder counts as a run folder."""
        with self._naming_errors():
            write_atomically(self.config_file, text.encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json`` atomically."""
        with self._naming_errors():
            write_atomically(self.summary_file, (json.dumps(summary, indent=2) + "\n").encode())

    def append_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one JSON line per row to ``samples.jsonl``.

        A file that would grow past ``run.max_sample_mib`` becomes ``samples.1.jsonl`` first, replacing
        the one before, so samples take at most twice that room.

        Raises:
            RunFolderError: the disk is full.
        """
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        with self._naming_errors():
            size = self.samples_file.stat().st_size if self.samples_file.exists() else 0
            if size and size + len(data) > self._max_sample_bytes:
                self.samples_file.replace(self.path / "samples.1.jsonl")
            with self.samples_file.open("ab") as file:
                file.write(data)

    def require_room(self, num_bytes: int) -> None:
        """Refuse to start what cannot be written.

        Raises:
            RunFolderError: fewer than ``num_bytes`` bytes are free.
        """
        free = free_bytes(self.path)
        if free < num_bytes:
            raise RunFolderError(
                f"{self.path} has {free} bytes free, {num_bytes} are needed: free the disk, lower "
                "learning.keep_checkpoints, or choose another run.dir"
            )

    def close(self) -> None:
        """Give the folder back; twice is harmless."""
        self._lock.release()

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_disk_full(error):
                raise RunFolderError(
                    f"{self.path} is full ({free_bytes(self.path)} bytes free): free the disk and resume "
                    "with run.exists=resume"
                ) from error
            raise RunFolderError(f"{self.path} cannot be written: {error}") from error


def _prepare(path: Path, section: RunSection) -> bool:
    """Apply ``run.exists`` to a locked folder; True where an earlier life is resumed."""
    content = [entry for entry in path.iterdir() if not _means_nothing(entry)]
    if not content:
        return False
    if section.exists is Exists.refuse:
        raise RunFolderError(
            f"run.dir={section.dir!r} exists and is not empty: give run.exists=resume, "
            "run.exists=overwrite, or another run.dir"
        )
    if not (path / MARKER).is_file():
        raise RunFolderError(
            f"run.dir={section.dir!r} holds files but no {MARKER}, so it is not a run folder and is left "
            "alone: choose another run.dir"
        )
    if section.exists is Exists.resume:
        return True
    # The marker goes last: an interrupted removal is still recognised and can be repeated.
    for entry in sorted(content, key=lambda entry: entry.name == MARKER):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (path / ".run_id").unlink(missing_ok=True)
    return False


def _means_nothing(entry: Path) -> bool:
    """True for what a run that died before its first line leaves: our own files and empty folders."""
    return entry.name in _OWN or (entry.is_dir() and not any(entry.iterdir()))


def _read_or_make_run_id(path: Path) -> str:
    file = path / ".run_id"
    if not file.exists():
        write_atomically(file, secrets.token_hex(4).encode())
    return f"{xxhash.xxh3_64_hexdigest(str(path).encode())[:8]}-{file.read_text().strip()}"


def _cut_torn_line(file: Path) -> None:
    """Drop a last line without its end, which a killed writer left."""
    if file.exists() and (data := file.read_bytes()) and not data.endswith(b"\n"):
        os.truncate(file, data.rfind(b"\n") + 1)
