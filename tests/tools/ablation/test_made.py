import os
import platform

from tools.ablation.made import in_words, machine, made_of, versions
from tools.ablation.outcome import stories_of


def entry(**changes):
    return {"begun": "2026-01-02 03:04:05", "seconds": 2.5, "machine": {"processor": "p", "cores": 2},
            "versions": {"torch": "2.13"}, "command": "perilune ablate x", **changes}


def test_where_this_process_runs():
    assert machine()["cores"] == os.cpu_count()
    assert machine()["processor"]
    found = versions(("torch", "no-such-package"))
    assert found["Python"] == platform.python_version()
    assert found.keys() == {"Python", "torch"}


def test_runs_of_several_calls_are_summed_up(matrix):
    _, cells = matrix()
    cells[0].write_tries([entry(), entry(begun="2026-01-03 00:00:00")])
    cells[1].write_tries([entry(command="perilune ablate y", machine={"processor": "q", "cores": 4})])
    made = made_of(cells, stories_of(cells))
    assert made == {
        "machines": [{"processor": "p", "cores": 2}, {"processor": "q", "cores": 4}], "versions": [{"torch": "2.13"}],
        "commands": ["perilune ablate x", "perilune ablate y"], "commits": ["c0ffee"],
        "begun": "2026-01-02 03:04:05", "last_begun": "2026-01-03 00:00:00", "seconds": 7.5}
    said = in_words(made)
    assert "took 8 s together" in said
    assert "Machine: processor p, cores 2; or processor q, cores 4." in said
    assert said.endswith("Command: perilune ablate x; perilune ablate y")


def test_what_nobody_wrote_down_is_not_made_up(matrix):
    _, cells = matrix()
    made = made_of(cells, stories_of(cells))
    assert (made["machines"], made["seconds"], made["begun"]) == ([], None, None)
    assert in_words(made) == "Commit: c0ffee. Nobody wrote down where and when the runs were made."
