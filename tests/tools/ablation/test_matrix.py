import signal
from itertools import pairwise
from threading import Event, main_thread

import pytest

from engine.errors import RunFolderError
from tests.tools.run_folders import write_run
from tools.ablation import matrix as room
from tools.ablation.arms import ArmConfig, Order
from tools.ablation.cells import Ended
from tools.ablation.matching import match_arms
from tools.ablation.matrix import Matrix, cells_of


@pytest.fixture
def build(ablation, monkeypatch):
    """A matrix whose runs are written by a function of the cell."""
    def make(play, **changes):
        config = ablation(**changes)
        monkeypatch.setattr(room, "run_cell", lambda cell, deadline_s, started: play(cell, started))
        said = []
        return Matrix(config, cells_of(config, match_arms(config)), {"machine": {"cores": 2}}, said.append), said

    return make


def names(cells):
    return [(cell.arm.name, cell.seed) for cell in cells]


def test_two_arms_take_turns(ablation):
    config = ablation(seeds=[5, 6])
    arms = match_arms(config)
    first, second, third, fourth = names(cells_of(config, arms))
    assert {first, second, third, fourth} == {("sync", 5), ("ahead", 5), ("sync", 6), ("ahead", 6)}
    assert (first[0], second[0]) == (fourth[0], third[0]), "whoever came first comes second with the next seed"
    in_turn = ablation(seeds=[5, 6], order=Order.in_turn)
    assert names(cells_of(in_turn, arms)) == [("sync", 5), ("sync", 6), ("ahead", 5), ("ahead", 6)]
    assert cells_of(in_turn, arms)[0].folder.parts[-3:] == ("cells", "sync", "seed-5")


def test_arms_come_in_an_order_drawn_for_each_seed_and_follow_others_than_before(ablation):
    config = ablation(seeds=[0, 1, 2, 7], arms=[ArmConfig(name) for name in "abcdef"])
    arms = match_arms(config)
    cells = names(cells_of(config, arms))
    assert cells == names(cells_of(config, arms)), "drawn from a fixed generator"
    rows = [[name for name, own in cells if own == seed] for seed in config.seeds]
    assert all(sorted(row) == list("abcdef") for row in rows)
    assert [seed for _, seed in cells] == [seed for seed in config.seeds for _ in "abcdef"]
    for i in range(3):
        pairs = [set(pairwise(rows[j - 1][-1:] + rows[j] if j else rows[j])) for j in (i, i + 1)]
        assert not pairs[0] & pairs[1], "no arm follows the same one with two seeds in turn"
    follows = {arm: {before for (before, _), (name, _) in pairwise(cells) if name == arm} for arm in "abcdef"}
    assert min(len(found) for found in follows.values()) >= 3
    places = {arm: {row.index(arm) for row in rows} for arm in "abcdef"}
    assert min(len(found) for found in places.values()) >= 3
    other = ablation(seeds=[0, 1, 2, 7], arms=config.arms, name="other")
    assert names(cells_of(other, arms)) != cells


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_failed_run_costs_the_others_nothing_and_whole_ones_are_taken_over(build, parallel):
    played = []

    def play(cell, started):
        played.append(cell.name)
        if cell.name == "ahead seed 0":
            return Ended("exit code 2", 1.0)
        write_run(cell.folder, *cell.arm.overrides[1:-1], seed=cell.seed)
        return Ended("", 1.0, 0.02, "2026-01-02 03:04:05")

    matrix, said = build(play, parallel=parallel)
    matrix.run()
    assert len(played) == 4
    assert [cell.name for cell in matrix.cells if cell.summary is None] == ["ahead seed 0"]
    assert "FAILED, exit code 2" in " ".join(said)
    matrix.run()
    assert played[4:] == ["ahead seed 0"]
    assert sum("taken over" in line for line in said) == 3
    whole = next(cell for cell in matrix.cells if cell.name == "sync seed 1")
    assert whole.tries == [{"failed": "", "seconds": 1.0, "foreign": 0.02, "begun": "2026-01-02 03:04:05",
                            "machine": {"cores": 2}}], "written down when it was made, kept when it is taken over"
    failed = next(cell for cell in matrix.cells if cell.name == "ahead seed 0")
    assert [one["failed"] for one in failed.tries] == ["exit code 2"], "nothing was there to go on from"
    write_run(failed.folder, *failed.arm.overrides[1:-1], seed=0, whole=False)
    matrix.run()
    assert len(failed.tries) == 2, "the second try went on with what the first had left"


def test_ctrl_c_asks_those_under_way_to_save_and_starts_no_more(build):
    class Process:
        def __init__(self):
            self.asked = Event()

        def poll(self):
            return None

        def send_signal(self, number):
            assert number == signal.SIGINT
            self.asked.set()

    played = []

    def play(cell, started):
        process = Process()
        played.append(cell.name)
        started(process)
        if len(played) == 1:
            signal.pthread_kill(main_thread().ident, signal.SIGINT)
        return Ended("" if process.asked.wait(60.0) else "nobody asked it to save", 1.0)

    matrix, said = build(play, parallel=1)
    with pytest.raises(KeyboardInterrupt):
        matrix.run()
    assert len(played) == 1
    assert "nobody asked" not in " ".join(said)


def test_a_folder_with_another_run_is_refused_before_anything_starts(build):
    matrix, said = build(lambda *_: pytest.fail("nothing may start"))
    write_run(matrix.cells[-1].folder, "loss.tau=0.3")
    with pytest.raises(RunFolderError, match=r"loss\.tau"):
        matrix.run()
    assert said == []
