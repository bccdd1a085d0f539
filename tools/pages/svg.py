"""Elements of SVG and HTML as text."""

from __future__ import annotations

from html import escape

SERIES = 8
"""Colours of series that the style sheet has."""


def number(value: float) -> str:
    """At most two decimals, none where none are needed."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def tag(name: str, content: str = "", /, **attributes: str | float) -> str:
    """One element; ``content`` is markup already, attributes are escaped here.

    A trailing underscore is dropped and others become hyphens, so that ``class_`` and ``text_anchor`` can be said.

    Example:
        >>> tag("rect", class_="f1", x=1.5)
        '<rect class="f1" x="1.5"></rect>'
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value if isinstance(value, str) else number(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{said}>{content}</{name}>"


def text(content: str, x: float, y: float, /, **attributes: str | float) -> str:
    """A line of text; ``content`` is escaped here."""
    return tag("text", escape(content), x=x, y=y, **attributes)


def drawing(width: float, height: float, title: str, content: str) -> str:
    """A whole drawing; ``title`` is what a reader who does not see it is told."""
    # Larger than this, its letters would be out of scale with those around it.
    return tag("svg", tag("title", escape(title)) + content, viewBox=f"0 0 {number(width)} {number(height)}",
               role="img", style=f"max-width:{1.35 * width:.0f}px")


def path(points: list[tuple[float, float]], **attributes: str | float) -> str:
    """An open line through points."""
    return tag("path", d="M" + "L".join(f"{number(x)} {number(y)}" for x, y in points), **attributes)


def shortened(words: str, most: int) -> str:
    """At most so many characters, the cut marked."""
    return words if len(words) <= most else words[: most - 1] + "\u2026"
