import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.pages.scale import Scale, short, span, ticks


def test_a_scale_is_straight_and_may_be_turned_around():
    assert [Scale(0, 10, 100, 0)(value) for value in (0, 5, 10)] == [100, 50, 0]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_lie_inside_and_are_about_as_many_as_wanted(low, size, wanted):
    found = ticks(low, low + size, wanted)
    assert wanted / 3 <= len(found) <= 2 * wanted + 2
    assert all(low - 1e-6 * size <= value <= low + 1.000001 * size for value in found)


@pytest.mark.parametrize(("values", "floor", "found"), [
    ([3.0, 1.0, math.nan], None, (1.0, 3.0)),
    ([2.0, 2.0], None, (1.5, 2.5)),
    ([0.0], 0.0, (0.0, 1.0)),
    ([], None, (0.0, 1.0)),
])
def test_a_span_is_never_empty(values, floor, found):
    assert span(values, floor) == found


def test_short_numbers():
    assert [short(value) for value in (0, 0.5, 12.345, 999.4, 2_500_000, math.nan)] == [
        "0", "0.5", "12.3", "999", "2.5M", "-"]
