from types import SimpleNamespace

from engine.errors import RunFolderError
from tools.ablation.simulated import simulated


def forecast(folder, changes):
    assert changes == {"machines": "separate"}
    speed = 30.0 if "ahead" in str(folder) else 20.0
    return SimpleNamespace(
        measured=SimpleNamespace(samples_per_second=10.0), error=0.04,
        predicted=SimpleNamespace(samples_per_second=speed, idle={"generator": 0.1, "learner": 0.5}))


def refuses(folder, changes):
    raise RunFolderError("no update in it")


def test_every_arm_with_a_trace_has_a_row_that_says_it_is_simulated(matrix):
    _, cells = matrix()
    assert simulated(cells, forecast) is None
    for cell in cells:
        (cell.folder / "trace.json").write_text("[\n")
    found = simulated(cells, forecast)
    assert found["text"].startswith("SIMULATED, not measured")
    assert found["rows"] == [["sync, seed 0", "10", "+4%", "20", "1.00x", "10%", "50%"],
                             ["ahead, seed 0", "10", "+4%", "30", "1.50x", "10%", "50%"]]
    assert simulated(cells, refuses) is None
