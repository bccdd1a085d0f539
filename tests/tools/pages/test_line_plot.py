import math
import re

from tools.pages.line_plot import HEIGHT, WIDTH, Line, line_plot


def places(markup: str, kind: str) -> list[tuple[float, float]]:
    (d,) = re.findall(rf'<path d="([^"]*)" class="{kind}"', markup)
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", d)]


def test_a_line_with_its_band_lies_inside_the_drawing(texts):
    line = Line("a", [(0, 1.0), (5, math.nan), (10, 3.0)], [(0, 0.5, 1.5), (10, 2.0, 4.0)], dots=True)
    drawn = line_plot([line, Line("b", [(10, 2.0)])], "samples", "Reward", floor=0.0, mark=2.5)
    (left, low), (right, high) = places(drawn, "line s0")
    assert left < right, "what is not finite is left out"
    assert low > high, "up is more"
    for x, y in [*places(drawn, "band f0"), *places(drawn, "mark")]:
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT
    assert texts(drawn)[0] == "Reward against samples"
    assert "samples" in texts(drawn)


def test_a_point_below_the_floor_is_drawn_inside_and_a_band_below_it_is_cut():
    drawn = line_plot([Line("a", [(0, -0.5), (1, 1.0)])], "samples", "Reward", floor=0.0)
    assert max(y for _, y in places(drawn, "line s0")) <= HEIGHT - 40
    drawn = line_plot([Line("a", [(0, 0.5), (1, 1.0)], [(0, -9.0, 1.0), (1, -9.0, 1.0)])], "x", "y", floor=0.0)
    assert places(drawn, "line s0")[0][1] < HEIGHT - 80, "a wide interval does not press the line together"


def test_nothing_recorded_is_said(texts):
    assert texts(line_plot([Line("a", [])], "samples", "Reward"))[-1] == "nothing was recorded"
