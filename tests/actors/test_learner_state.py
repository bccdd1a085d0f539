"""The learner's part of a checkpoint, bit for bit."""

import pytest
import torch

from actors.learner_state import read_core, write_core
from engine.errors import CheckpointError
from engine.learn.parts import Parts
from engine.learn.step import LearnerCore
from engine.models.policy import load_network
from engine.models.ranks import ALONE
from engine.models.sharding import shard
from engine.records.version import PolicyVersion
from engine.weights.layout import take_part, weights_digest


@pytest.fixture
def core(config, policy):
    return LearnerCore(load_network(policy, config.learning.precision), config)


def step(core):
    """One optimiser step along a gradient made up, the same whoever holds which rows."""
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


def passed_on(ranks, config, policy, source, target, steps):
    """Read a state unless there is none, make steps, write it again; digests before and after."""
    torch.set_num_threads(1)
    network = shard(load_network(policy, config.learning.precision), ranks, torch.float32)
    core = LearnerCore(network, config, None, ranks)
    if source is not None:
        read_core(core, source)
    before = digest(core)
    for _ in range(steps):
        step(core)
    write_core(core, target)
    return before, digest(core), core.optimiser.steps, core.version


def digest(core):
    masters = core.optimiser.master_tensors()
    if core.ranks.first:
        return weights_digest(masters)
    take_part(masters)
    return None


def contents(folder):
    """Everything that a checkpoint holds, whole, whoever wrote which rows."""
    with Parts(folder) as parts:
        wholes = {name: parts._files[0][1]["rows"][name][2] for name in parts.names}
        return {name: parts.read(name, (0, whole, whole)) for name, whole in wholes.items()}


@pytest.mark.parametrize("chain", [(2, 1, 2), pytest.param((1, 3, 2), marks=pytest.mark.slow)])
def test_any_number_of_ranks_goes_on_where_another_stopped(config, policy, tmp_path, rank_pool, chain):
    source, last = None, passed_on(ALONE, config, policy, None, tmp_path / "none", 0)[1]
    for number, size in enumerate(chain):
        target = tmp_path / str(number)
        # A step at the start, so that there are moments, and one at the end, so that they are used.
        arguments = (config, policy, source, target, int(source is None))
        found = [passed_on(ALONE, *arguments)] if size == 1 else rank_pool.ask(passed_on, size, *arguments)
        before, after, steps, version = found[0]
        assert len(list(target.iterdir())) == size
        assert before == last, f"{size} ranks read other weights than were written"
        assert (steps, version.lineage) == (1, number), "a new lineage at every resume"
        source, last = target, after
    first, final = contents(tmp_path / "0"), contents(source)
    assert {name.partition(".")[0] for name in first} == {"master", "step", "exp_avg", "exp_avg_sq"}
    assert set(first) == set(final)
    assert all(torch.equal(first[name], final[name]) for name in first), "not the same bits"
    straight = passed_on(ALONE, config, policy, tmp_path / "0", tmp_path / "straight", 1)
    resumed = rank_pool.ask(passed_on, 2, config, policy, source, tmp_path / "end", 1)[0]
    assert straight[0] == resumed[0]
    assert (straight[2], resumed[2]) == (2, 2)
    one, two = contents(tmp_path / "straight"), contents(tmp_path / "end")
    for name in one:  # gradients are clipped by a norm that two ranks add up in another order
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-7)
