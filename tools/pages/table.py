"""Tables, in HTML and in Markdown, from the same cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tools.pages.svg import tag

MARK = "\N{DAGGER}"


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a cell, and the small print under it."""

    text: str
    small: str = ""
    marked: bool = False
    """Stands out, and carries the sign ``MARK``: what that means, the text beside the table says."""

    @property
    def signed(self) -> str:
        """The text with its sign."""
        return f"{self.text} {MARK}" if self.marked else self.text


Row = Sequence[Cell | str]


def _cell(value: Cell | str) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def html_table(header: Sequence[str], rows: Sequence[Row], words: bool = False) -> str:
    """A table that scrolls by itself where it is wider than the page; ``words`` stand to the left."""
    head = tag("tr", "".join(tag("th", escape(name), scope="col") for name in header))
    body = "".join(
        tag("tr", "".join(
            tag("td", escape(cell.signed) + (tag("small", escape(cell.small)) if cell.small else ""),
                **({"class_": "marked"} if cell.marked else {}))
            for cell in map(_cell, row)
        ))
        for row in rows
    )
    table = tag("table", tag("thead", head) + tag("tbody", body), class_="words" if words else "numbers")
    return tag("div", table, class_="scroll")


def markdown_table(header: Sequence[str], rows: Sequence[Row]) -> str:
    """The same in Markdown, small print in brackets.

    Example:
        >>> print(markdown_table(["", "a"], [["x", Cell("1", "0 to 2")]]))
        | | a |
        |---|---|
        | x | 1 (0 to 2) |
    """
    def said(value: Cell | str) -> str:
        cell = _cell(value)
        return (cell.signed + (f" ({cell.small})" if cell.small else "")).replace("|", "\\|")

    lines = [[said(value) for value in row] for row in (header, *rows)]
    shown = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([shown[0].replace("|  |", "| |"), "|" + "---|" * len(header), *shown[1:]])
