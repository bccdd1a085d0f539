import signal
from threading import Event, main_thread

import pytest

from engine.errors import RunFolderError
from tests.tools.run_folders import write_run
from tools.ablation import matrix as room
from tools.ablation.arms import Order
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
        return Matrix(config, cells_of(config, match_arms(config)), said.append), said

    return make


def names(cells):
    return [(cell.arm.name, cell.seed) for cell in cells]


def test_seeds_take_turns_and_the_first_arm_moves_on(ablation):
    config = ablation(seeds=[5, 6])
    arms = match_arms(config)
    assert names(cells_of(config, arms)) == [("sync", 5), ("ahead", 5), ("ahead", 6), ("sync", 6)]
    in_turn = ablation(seeds=[5, 6], order=Order.in_turn)
    assert names(cells_of(in_turn, arms)) == [("sync", 5), ("sync", 6), ("ahead", 5), ("ahead", 6)]
    assert cells_of(config, arms)[0].folder.parts[-3:] == ("cells", "sync", "seed-5")


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_failed_run_costs_the_others_nothing_and_whole_ones_are_taken_over(build, parallel):
    played = []

    def play(cell, started):
        played.append(cell.name)
        if cell.name == "ahead seed 0":
            return Ended("exit code 2", 1.0, (0.0, 0.0))
        write_run(cell.folder, *cell.arm.overrides[1:-1], seed=cell.seed)
        return Ended("", 1.0, (0.0, 0.0))

    matrix, said = build(play, parallel=parallel)
    matrix.run()
    assert len(played) == 4
    assert [cell.name for cell in matrix.cells if cell.summary is None] == ["ahead seed 0"]
    assert "FAILED, exit code 2" in " ".join(said)
    matrix.run()
    assert played[4:] == ["ahead seed 0"]
    assert sum("taken over" in line for line in said) == 3


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
        return Ended("" if process.asked.wait(60.0) else "nobody asked it to save", 1.0, (0.0, 0.0))

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
