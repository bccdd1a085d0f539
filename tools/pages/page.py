"""A sheet of HTML with its sections; nothing in it is fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tools.pages.style import style_sheet
from tools.pages.svg import SERIES, path, tag


def sheet(title: str, under: str, body: Iterable[str]) -> str:
    """The whole file; ``title`` and ``under`` are plain text, ``body`` is markup."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        + tag("title", escape(title)) + tag("style", style_sheet())
    )
    top = tag("h1", escape(title)) + tag("p", escape(under), class_="muted")
    main = tag("main", top + "\n".join(body))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{main}</body></html>\n'


def section(title: str, text: str, *parts: str) -> str:
    """A heading, a paragraph of plain text, and what follows."""
    return tag("h2", escape(title)) + (tag("p", escape(text)) if text else "") + "".join(parts)


def figure(title: str, caption: str, drawn: str) -> str:
    """A drawing under its name and one sentence."""
    return tag("figure", tag("figcaption", f"{tag('b', escape(title))} {escape(caption)}") + drawn)


def grid(figures: Iterable[str]) -> str:
    """Figures side by side where there is room."""
    return tag("div", "".join(figures), class_="grid")


def legend(names: Sequence[str]) -> str:
    """The key of series 0, 1, ... by line and name."""
    keys = [
        tag("span", tag("svg", path([(0, 6), (28, 6)], class_=f"line s{i % SERIES}"), viewBox="0 0 28 12",
                        aria_hidden="true") + escape(name))
        for i, name in enumerate(names)
    ]
    return tag("div", "".join(keys), class_="legend")


def bullets(notes: Iterable[str]) -> str:
    """A list of plain sentences; nothing where there are none."""
    items = "".join(tag("li", escape(note)) for note in notes)
    return tag("ul", items, class_="notes") if items else ""


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """Large figures with the name under them: (value, name)."""
    return tag("div", "".join(tag("div", tag("b", escape(value)) + tag("span", escape(name), class_="muted"))
                              for value, name in facts), class_="tiles")
