import re

from tools.pages.lanes import Stretch, lanes


def test_stretches_that_nearly_touch_are_drawn_as_one(texts):
    busy = [Stretch(k / 1000, (k + 0.9) / 1000, "sample") for k in range(1000)]
    drawn = lanes([("generator", busy), ("learner", [Stretch(0.5, 1.0, "update")])], "Timeline")
    assert len(re.findall(r"<rect[^>]*height=\"20\"", drawn)) <= 1000
    few = lanes([("generator", [Stretch(0.0, 1.0, "sample"), Stretch(1.0001, 2.0, "sample")])], "Timeline")
    assert len(re.findall(r"<rect[^>]*height=\"20\"", few)) == 1
    assert {"generator", "learner", "sample", "update"} <= set(texts(drawn))


def test_no_work_is_said(texts):
    assert texts(lanes([("learner", [])], "Timeline"))[-1] == "no work was recorded"
