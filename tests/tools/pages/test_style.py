import pytest

from tools.pages.style import DARK, DASHES, LIGHT, style_sheet
from tools.pages.svg import SERIES


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("colours", "grounds"), [(LIGHT, ("#ffffff", "#f5f6f8")), (DARK, ("#14181d", "#1c2128"))])
def test_every_colour_stands_out_as_text_does(colours, grounds):
    assert all(contrast(colour, ground) >= 4.5 for colour in colours for ground in grounds)
    assert all(ground in style_sheet() for ground in grounds)


def test_there_is_a_colour_and_a_dash_for_every_series():
    assert len(LIGHT) == len(DARK) == len(set(DASHES)) == SERIES
