import pytest

from tools.ablation.outcome import stories_of
from tools.ablation.plots import _line, arm_plots


def test_the_band_goes_from_least_to_largest_where_all_seeds_have_values():
    line = _line("a", [[(0, 1.0), (10, 3.0)], [(0, 2.0), (5, 4.0)]], dots=True)
    assert [x for x, _ in line.points] == [0, 5]
    assert line.points[1] == (5, pytest.approx(3.0))
    assert line.band[1] == (5, 2.0, 4.0)
    assert not line.dots, "only points that were measured are marked"
    assert _line("a", [[], [(0, 1.0)]], dots=False).band == []


def test_an_arm_without_runs_is_no_obstacle(matrix):
    _, cells = matrix()
    stories = stories_of(cells) | {cell.name: "gone" for cell in cells if cell.arm.name == "sync"}
    drawn = arm_plots(cells, stories, ["sync", "ahead"], ("heldout/accuracy", 0.5))
    assert drawn.count("<figure>") == 4
    assert 'class="line s1"' in drawn, "colours stay with their arms"
    assert 'class="line s0"' not in drawn
