import re
from itertools import pairwise

from tools.pages.flow import Branch, flow


def test_every_amount_is_named_and_labels_keep_their_distance(texts):
    leaves = [("loss", 900.0), ("masked: stale", 1.0), ("masked: zero", 1.0), ("never", 0.0)]
    drawn = flow("generated", [Branch("trained", 902.0, 2, leaves), Branch("dropped", 0.0, 1)], "Tokens")
    assert texts(drawn)[1:] == ["trained 902", "loss 900", "masked: stale 1", "masked: zero 1", "generated 902"]
    tops = [float(y) for y in re.findall(r'<rect x="330" y="([\d.]+)"', drawn)]
    assert all(below - above >= 14 for above, below in pairwise(tops))


def test_nothing_flows_yet(texts):
    assert texts(flow("issued", [], "Trajectories"))[-1] == "nothing yet"
