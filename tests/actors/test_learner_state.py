"""The learner's part of a checkpoint, bit for bit."""

import pytest
import torch

from actors.learner_state import read_core, write_core
from engine.errors import CheckpointError
from engine.learn.step import LearnerCore
from engine.models.policy import load_network
from engine.records.version import PolicyVersion


@pytest.fixture
def core(config, policy):
    return LearnerCore(load_network(policy, config.learning.precision), config)


def step(core):
    """One optimiser step along a gradient made up."""
    for index, parameter in enumerate(core.network.parameters()):
        parameter.grad = torch.full_like(parameter, 0.01 * (index + 1))
    core.optimiser.collect()
    core.optimiser.step()


def test_weights_moments_and_version_come_back_under_a_new_lineage(core, config, policy, tmp_path):
    step(core)
    core.version = PolicyVersion(3, 7)
    write_core(core, tmp_path / "state")
    other = LearnerCore(load_network(policy, config.learning.precision), config)
    read_core(other, tmp_path / "state")
    assert other.version == PolicyVersion(4, 7)
    assert other.optimiser.steps == core.optimiser.steps == 1
    step(core)
    step(other)
    mine, theirs = core.optimiser.master_tensors(), other.optimiser.master_tensors()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_missing_or_damaged_file_is_named(core, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        read_core(core, tmp_path / "nowhere")
    write_core(core, tmp_path / "state")
    (part,) = (tmp_path / "state").iterdir()
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="part-00000-of-00001"):
        read_core(core, tmp_path / "state")
