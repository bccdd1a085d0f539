from __future__ import annotations

from tools.bench import controller


def test_the_world_trains_every_trajectory_it_was_asked_for() -> None:
    world = controller.InstantWorld(600)
    world.run()
    assert world.trajectories == 1024
    assert world.controller.version.updates == 2
    assert world.events > 2 * world.trajectories


def test_memory_does_not_grow_with_the_run() -> None:
    found = controller.measure(trajectories=2000, repeats=1)
    assert found["controller_trajectories"] >= 2000
    assert found["controller_trajectories_per_second"] > 0
    assert found["controller_many_trajectories_per_second"] > 0
    assert found["controller_many_events"] > 2 * found["controller_many_trajectories"]
    assert found["controller_held_bytes_whole"] < 4 * found["controller_held_bytes_tenth"]
