"""A flow from one amount to all that became of it, ribbons as wide as their share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools.pages.scale import short
from tools.pages.svg import drawing, number, tag, text

_WIDTH, _BAR, _GAP, _TALL = 560, 12, 22, 180
_COLUMNS = (0, 170, 330)


@dataclass(frozen=True, slots=True)
class Branch:
    """A part of the whole, and the parts that it falls into, which add up to it."""

    name: str
    amount: float
    colour: int
    leaves: Sequence[tuple[str, float]] = ()


def flow(source: str, branches: Sequence[Branch], title: str) -> str:
    """Three columns: the whole, its branches, their leaves; what has no amount is left out."""
    present = [branch for branch in branches if branch.amount > 0]
    total = sum(branch.amount for branch in present)
    if not total:
        return drawing(_WIDTH, 40, title, text("nothing yet", 0, 24))
    scale = _TALL / total
    parts, y, start = [], 0.0, 0.0
    for branch in present:
        leaves = [leaf for leaf in branch.leaves if leaf[1] > 0] or [("", branch.amount)]
        height = sum(max(amount * scale, 2.0) + _GAP for _, amount in leaves)
        middle = y + (height - _GAP - branch.amount * scale) / 2
        parts.append(_ribbon(_COLUMNS[0] + _BAR, start, _COLUMNS[1], middle, branch.amount * scale, branch.colour))
        start += branch.amount * scale
        parts.append(_leaves(branch, leaves, y, middle, scale))
        y += height
    top = max(y - _GAP, _TALL)
    whole = tag("rect", x=_COLUMNS[0], y=0, width=_BAR, height=_TALL, class_="f7")
    label = text(f"{source} {short(total)}", 0, _TALL + 16, class_="ink")
    return drawing(_WIDTH, max(top, _TALL) + 22, title, "".join(parts) + whole + label)


def _leaves(branch: Branch, leaves: Sequence[tuple[str, float]], y: float, middle: float, scale: float) -> str:
    share = branch.amount * scale
    parts = [tag("rect", x=_COLUMNS[1], y=middle, width=_BAR, height=max(share, 1.5), class_=f"f{branch.colour}")]
    alone = leaves[0][0] == ""
    parts.append(text(f"{branch.name} {short(branch.amount)}", _COLUMNS[1] + _BAR + 6, middle + max(share / 2, 1) + 4,
                      class_="ink"))
    if alone:
        return "".join(parts)
    at = middle
    for name, amount in leaves:
        tall = max(amount * scale, 2.0)
        parts.append(_ribbon(_COLUMNS[1] + _BAR, at, _COLUMNS[2], y, amount * scale, branch.colour))
        parts.append(tag("rect", x=_COLUMNS[2], y=y, width=_BAR, height=tall, class_=f"f{branch.colour}"))
        parts.append(text(f"{name} {short(amount)}", _COLUMNS[2] + _BAR + 6, y + tall / 2 + 4))
        at += amount * scale
        y += tall + _GAP
    return "".join(parts)


def _ribbon(x: float, y: float, to_x: float, to_y: float, thick: float, colour: int) -> str:
    n, bend, thick = number, (x + to_x) / 2, max(thick, 1.0)
    there = f"M{n(x)} {n(y)}C{n(bend)} {n(y)} {n(bend)} {n(to_y)} {n(to_x)} {n(to_y)}"
    back = f"V{n(to_y + thick)}C{n(bend)} {n(to_y + thick)} {n(bend)} {n(y + thick)} {n(x)} {n(y + thick)}Z"
    return tag("path", d=there + back, class_=f"ribbon f{colour}")
