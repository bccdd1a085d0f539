"""Consumed groups on disk, one file for each update: what a run dumps and ``train.only=learn`` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.errors import RecordError, RunFolderError
from engine.records.codec import decode, encode
from engine.records.trajectory import Group
from engine.records.version import PolicyVersion
from engine.run_folder import write_atomically

GroupLengths = tuple[int, str, dict[int, int]]


def write_rollouts(folder: Path, update: int, groups: Sequence[Group]) -> None:
    """Write the groups that one update consumes.

    Args:
        folder: ``rollouts`` of a run folder.
        update: updates committed before it.
        groups: sorted by id.

    Raises:
        RunFolderError: they do not fit, or the folder is not writable.
    """
    path = folder / f"update-{update:06d}.msgpack"
    try:
        write_atomically(path, encode(list(groups)))
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error}; free the disk and resume") from error


def read_rollouts(path: Path) -> list[Group]:
    """The groups of one file.

    Raises:
        RecordError: it holds something else.
    """
    groups = decode(path.read_bytes())
    if not isinstance(groups, list) or not all(isinstance(group, Group) for group in groups):
        raise RecordError(f"{path} holds no groups: dump rollouts with run.dump_rollouts=true")
    return groups


def rollout_files(folder: Path) -> list[Path]:
    """The files of a folder in order.

    Raises:
        RunFolderError: there is none, or one between the first and the last is missing.
    """
    files = sorted(folder.glob("update-*.msgpack"))
    expected = [f"update-{index:06d}.msgpack" for index in range(len(files))]
    if not files or [file.name for file in files] != expected:
        found = ", ".join(file.name for file in files[:4]) or "nothing"
        raise RunFolderError(
            f"train.rollouts={folder} must hold update-000000.msgpack and those that follow, it holds {found}: "
            "name the rollouts folder of a run with run.dump_rollouts=true or train.only=rollout"
        )
    return files


def history_of(groups: Sequence[Group], version: PolicyVersion) -> PolicyVersion:
    """The version in the lineage of recorded groups: the run that recorded them may have been resumed."""
    lineages = (s.version.lineage for g in groups for t in g.trajectories for s in t.segments)
    return PolicyVersion(max([version.lineage, *lineages]), version.updates)


def lengths_of(groups: Sequence[Group]) -> list[GroupLengths]:
    """Group id, prompt id, and trajectory ids with their lengths."""
    return [(g.group_id, g.prompt_id, {t.trajectory_id: t.length for t in g.trajectories}) for g in groups]
