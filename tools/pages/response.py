"""A sampled response to read: which version wrote which part, and what the judge said."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from tools.pages.svg import SERIES, tag


def response(row: Mapping[str, Any]) -> str:
    """A row of ``samples.jsonl`` as a figure; a file without pieces shows the text in one colour."""
    segments = row["segments"]
    versions = [version for version, _ in segments]
    pieces = row.get("pieces") or [row["text"]]
    if len(pieces) != len(segments):
        versions = [", ".join(versions)] * len(pieces)
    order = list(dict.fromkeys(versions))
    body = "".join(
        tag("span", escape(piece), class_=f"u{order.index(version) % SERIES}") + tag("sub", escape(f"v{version}"))
        for piece, version in zip(pieces, versions, strict=True)
    )
    mark = tag("span", "correct" if row["correct"] else "wrong", class_="good" if row["correct"] else "bad")
    if row["outcome"] != "ok":
        mark = tag("span", escape(f"not judged: {row['outcome']}"), class_="bad")
    tokens = sum(count for _, count in segments)
    said = f"reward {row['score']:.2f}, {tokens} tokens, ended by {row['finish'] or 'nothing yet'}"
    asked = tag("figcaption", f"{tag('b', escape(row['prompt']))} {mark}, {escape(said)}")
    return tag("figure", asked + tag("div", body or "&nbsp;", class_="response"))
