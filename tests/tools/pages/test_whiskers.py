import re

from tools.pages.whiskers import Whisker, whiskers


def test_a_factor_above_one_lies_right_of_no_difference(texts):
    drawn = whiskers([Whisker("overlap", 1.5, 1.2, 1.9), Whisker("tail", 0.5, None, None)], "speed")
    right, left = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn))
    (one,) = re.findall(r'<path d="M([\d.]+) [^"]*" class="mark"', drawn)
    assert left < float(one) < right
    assert drawn.count('class="whisker') == 1, "one seed has no whisker"
    assert "1.50x  1.20 to 1.90" in texts(drawn)


def test_a_wide_interval_does_not_squeeze_the_rest():
    drawn = whiskers([Whisker("a", 1.1, 0.0001, 9999.0)], "speed")
    start, stop = re.findall(r'<path d="M([\d.]+) [\d.]+L([\d.]+) [\d.]+" class="whisker', drawn)[0]
    assert 0 <= float(start) < float(stop) <= 560
