"""Where actors find the first weights: on this machine alone the cache will do, on several it will not."""

from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from actors.first_weights import NAME, first_weights
from actors.run import StopSignal, life
from actors.supervisor import Restarts
from engine.errors import RunFolderError
from tests.actors.fake_driver import changed

JOINED = {"cluster.address": "10.0.0.1:6379"}
Usage = namedtuple("Usage", "f_bavail f_frsize")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Of the driver's machine; no other machine sees it."""
    monkeypatch.setenv("PERILUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def joined(configured):
    """A run on a cluster of several machines."""
    return changed(configured("cluster=ray"), JOINED)


@pytest.fixture
def packaged(checked, policy):
    """What the checks find where the model was unpacked."""
    return replace(checked, folder=Path(policy))


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_on_one_machine_all_read_the_cache(configured, checked, packaged, run_folder, cache):
    for config in (configured(), configured("cluster=ray"), changed(configured(), JOINED)):
        assert first_weights(config, checked, run_folder, str).is_relative_to(cache)
        assert first_weights(config, packaged, run_folder, str) == packaged.folder
    assert not (run_folder.path / NAME).exists()


def test_machines_of_a_cluster_read_the_run_folder(joined, checked, run_folder, cache):
    said = []
    found = first_weights(joined, checked, run_folder, said.append)
    assert found == run_folder.path / NAME
    assert [str(found) in sentence for sentence in said] == [True]
    (made,) = (cache / "warm").iterdir()
    assert files(found) == files(made)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files(found).keys()
    assert first_weights(joined, checked, run_folder, said.append) == found
    assert len(said) == 1, "a further life, on whichever machine, finds it"


def test_a_packaged_model_is_copied_too_and_a_copy_that_was_cut_off_made_anew(joined, packaged, run_folder):
    config = changed(joined, {"model.source": "packaged"})
    torn = run_folder.path / f".{NAME}"
    torn.mkdir()
    (torn / "config.json").touch()
    found = first_weights(config, packaged, run_folder, str)
    assert files(found) == files(packaged.folder)
    assert not torn.exists()


def test_a_folder_that_was_given_is_shared_by_whoever_gave_it(configured, packaged, run_folder, policy, monkeypatch):
    config = changed(configured("cluster=ray", "model=folder", f"model.path={policy}"), JOINED)
    monkeypatch.chdir(Path(policy).parent)
    relative = replace(packaged, folder=Path(Path(policy).name))
    assert first_weights(config, relative, run_folder, str) == Path(policy), "other processes stand elsewhere"
    assert not (run_folder.path / NAME).exists()


def test_too_little_room_for_the_copy_is_said(joined, packaged, run_folder, monkeypatch):
    monkeypatch.setattr("os.statvfs", lambda path: Usage(1, 512))
    with pytest.raises(RunFolderError, match="512 bytes free"):
        first_weights(joined, packaged, run_folder, str)
    monkeypatch.undo()
    (run_folder.path / NAME).touch()
    with pytest.raises(RunFolderError, match="first weights could not be copied into"):
        first_weights(joined, packaged, run_folder, str)


def test_that_folder_is_what_a_run_gives_to_its_actors(joined, packaged, run_folder, monkeypatch):
    class StartedError(Exception):
        """Enough was seen."""

    def supervisor(cluster, config, folder, *others):
        raise StartedError(folder)

    monkeypatch.setattr("actors.run.Supervisor", supervisor)
    monkeypatch.setattr("actors.run._watched", lambda *_: (MagicMock(), MagicMock()))
    with pytest.raises(StartedError, match=NAME):
        life(joined, packaged, run_folder, StopSignal(), Restarts(0, 1.0, float), resumed=False)
