"""Shares that make a whole, one bar a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from tools.pages.scale import short
from tools.pages.svg import SERIES, drawing, shortened, tag, text

_WIDTH, _ROW, _LABEL = 560, 34, 150


def stacks(rows: Sequence[tuple[str, Mapping[str, float]]], title: str) -> str:
    """Bars of shares (0..1) by name; a name has the same colour in every row, and stands in a key under them."""
    names = list(dict.fromkeys(name for _, shares in rows for name in shares))
    parts = []
    for i, (label, shares) in enumerate(rows):
        y, x = _ROW * i + 6, float(_LABEL)
        parts.append(text(shortened(label, 21), 0, y + 15, class_="ink"))
        for name, share in shares.items():
            width = share * (_WIDTH - _LABEL)
            if width > 0:
                colour = names.index(name) % SERIES
                told = tag("title", f"{name}: {100 * share:.1f} %")
                parts.append(tag("rect", told, x=x, y=y, width=max(width - 1, 0.5), height=22,
                                 class_=f"f{colour}"))
            x += width
    return drawing(_WIDTH, _ROW * len(rows) + 4, title, "".join(parts)) + stack_key(names)


def stack_key(names: Sequence[str], waits: str = "") -> str:
    """The key of colours 0, 1, ..., as squares; ``waits`` is the name that is drawn thin."""
    keys = []
    for i, name in enumerate(names):
        thin = name == waits
        square = tag("rect", x=0, y=4 if thin else 0, width=12, height=4 if thin else 12, rx=1 if thin else 2,
                     class_=f"wait f{SERIES - 1}" if thin else f"f{i % SERIES}")
        drawn = tag("svg", square, viewBox="0 0 12 12", style="width:12px", aria_hidden="true")
        keys.append(tag("span", drawn + name))
    return tag("div", "".join(keys), class_="legend")


def columns(counts: Sequence[tuple[str, float]], title: str, x_label: str) -> str:
    """Upright bars of counts, as a histogram; labels are thinned where they would touch."""
    return _upright([(label, [count]) for label, count in counts], [""], title, x_label)


def pairs(rows: Sequence[tuple[str, float, float]], names: tuple[str, str], title: str, x_label: str) -> str:
    """Two upright bars beside each other for every label, in colours 0 and 1."""
    return _upright([(label, [one, other]) for label, one, other in rows], names, title, x_label)


def _upright(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], title: str, x_label: str) -> str:
    height, base, left = 220, 180, 46
    most = max([value for _, values in rows for value in values] + [1e-9])
    step = (_WIDTH - left) / max(len(rows), 1)
    every = max(1, round(44 / step + 0.49))
    parts = [text(short(most), left - 8, 18, text_anchor="end"), text("0", left - 8, base, text_anchor="end")]
    for i, (label, values) in enumerate(rows):
        x, width = left + i * step, (step - 2) / len(names)
        for k, (name, value) in enumerate(zip(names, values, strict=True)):
            tall, said = (base - 12) * value / most, f"{label}, {name}" if name else label
            parts.append(tag("rect", tag("title", escape(f"{said}: {short(value)}")), x=x + 1 + k * width,
                             y=base - tall, width=max(width, 0.5), height=tall, class_=f"f{k}"))
        if i % every == 0:
            parts.append(text(shortened(label, max(6, int(step / 7))), x + step / 2, base + 17, text_anchor="middle"))
    parts.append(text(x_label, (left + _WIDTH) / 2, height - 4, text_anchor="middle"))
    return drawing(_WIDTH, height, title, "".join(parts))
