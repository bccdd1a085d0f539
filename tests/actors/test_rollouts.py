"""Consumed groups on disk."""

import pytest

from actors.rollouts import history_of, lengths_of, read_rollouts, rollout_files, write_rollouts
from engine.errors import RecordError, RunFolderError
from engine.records.codec import encode
from engine.records.version import PolicyVersion
from tests.actors.test_learner import group


def test_groups_come_back(tmp_path):
    write_rollouts(tmp_path, 12, [group(0), group(1)])
    (file,) = tmp_path.iterdir()
    assert file.name == "update-000012.msgpack"
    found = read_rollouts(file)
    assert encode(found) == encode([group(0), group(1)])


def test_recorded_groups_say_their_lineage_and_their_lengths():
    groups = [group(0, PolicyVersion(2, 0)), group(1, PolicyVersion(1, 0))]
    assert history_of(groups, PolicyVersion(0, 3)) == PolicyVersion(2, 3)
    assert history_of([], PolicyVersion(4, 3)) == PolicyVersion(4, 3)
    assert lengths_of(groups) == [(0, "p0", {0: 5, 1: 5}), (1, "p1", {2: 5, 3: 5})]


def test_files_are_found_in_order_and_without_a_gap(tmp_path):
    for update in (1, 0, 2):
        write_rollouts(tmp_path, update, [group(update)])
    assert [file.name[-9] for file in rollout_files(tmp_path)] == ["0", "1", "2"]
    (tmp_path / "update-000001.msgpack").unlink()
    with pytest.raises(RunFolderError, match="it holds update-000000"):
        rollout_files(tmp_path)
    with pytest.raises(RunFolderError, match="it holds nothing"):
        rollout_files(tmp_path / "nowhere")


def test_anything_else_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(encode([1, 2]))
    with pytest.raises(RecordError, match="holds no groups"):
        read_rollouts(tmp_path / "file")


def test_a_disk_that_refuses_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="update-000000"):
        write_rollouts(tmp_path / "nowhere", 0, [group(0)])
