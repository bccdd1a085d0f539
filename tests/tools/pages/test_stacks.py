import re
from itertools import pairwise

from tools.pages.stacks import columns, pairs, stacks


def test_shares_fill_a_row_and_keep_their_colour(texts):
    drawn = stacks([("a", {"x": 0.25, "y": 0.75}), ("b", {"y": 1.0})], "tokens")
    rows = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="22" class="(f\d)"', drawn)
    assert [row[3] for row in rows] == ["f0", "f1", "f1"]
    assert float(rows[1][2]) > 2.9 * float(rows[0][2])
    assert texts(drawn)[-2:] == ["x", "y"]


def test_columns_are_as_tall_as_their_counts(texts):
    drawn = columns([(str(k), float(k)) for k in range(40)], "lengths", "tokens")
    tall = [float(height) for height in re.findall(r'height="([\d.]+)" class="f0"', drawn)]
    assert tall == sorted(tall)
    assert texts(columns([], "lengths", "tokens"))[-1] == "tokens"


def test_pairs_stand_beside_each_other(texts):
    drawn = pairs([("<a>", 4.0, 2.0), ("b", 0.0, 3.0)], ("generated", "trained"), "kinds", "kind")
    bars = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="([\d.]+)" class="f(\d)"', drawn)
    assert [bar[3] for bar in bars] == ["0", "1", "0", "1"]
    assert float(bars[0][2]) == 2 * float(bars[1][2])
    assert all(float(one[0]) + float(one[1]) <= float(other[0]) + 0.02 for one, other in pairwise(bars))
    assert "<a>, trained: 2" in texts(drawn)
