from types import SimpleNamespace

import pytest

from engine.errors import RunFolderError
from tools.ablation.arms import ArmConfig
from tools.ablation.matching import match_arms
from tools.ablation.simulated import _baseline, simulated


def forecast(folder, changes):
    assert changes == {"machines": "separate"}
    speed = (30.0 if "ahead" in str(folder) else 20.0) * (1.0 if "seed-0" in str(folder) else 1.5)
    return SimpleNamespace(
        measured=SimpleNamespace(samples_per_second=10.0), error=0.04,
        assumptions=("lengths as they were", f"alone, {folder.parent.name} {folder.name}"),
        predicted=SimpleNamespace(samples_per_second=speed, idle={"generator": 0.1, "learner": 0.5}))


def refuses(folder, changes):
    raise RunFolderError("no update in it")


def test_every_arm_with_a_trace_has_a_row_over_its_seeds_that_says_it_is_simulated(matrix):
    _, cells = matrix()
    cells = sorted(cells, key=lambda cell: ["sync", "ahead"].index(cell.arm.name))
    assert simulated(cells, forecast) is None
    for cell in cells:
        (cell.folder / "trace.json").write_text("[\n")
    found = simulated(cells, forecast)
    assert found["text"].startswith("SIMULATED, not measured")
    assert found["rows"] == [["sync", "2", "10", "+4%", "25 (20 to 30)", "1.00x sync", "10%", "50%"],
                             ["ahead", "2", "10", "+4%", "37.5 (30 to 45)", "1.50x sync", "10%", "50%"]]
    assert found["assumptions"] == ["lengths as they were", "alone, sync seed-0 (sync)", "alone, ahead seed-0 (ahead)"]
    assert simulated(cells, refuses) is None


@pytest.mark.parametrize(("twin", "baseline"), [(True, "d"), (False, "c")])
def test_an_arm_over_ray_is_divided_by_the_like_of_the_first_over_ray(ablation, twin, baseline):
    arms = [ArmConfig("a"), ArmConfig("b", ["schedule.batch_groups=2"]),
            ArmConfig("c", ["cluster=ray", "schedule.batch_groups=2"]),
            ArmConfig("d", ["cluster=ray", *([] if twin else ["schedule.batch_groups=1"])])]
    found = match_arms(ablation(arms=arms))
    assert [_baseline(arm, found) for arm in found] == ["a", "a", baseline, baseline]
