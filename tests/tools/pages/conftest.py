"""Markup that a page is made of has to be well formed."""

from collections.abc import Callable
from xml.etree import ElementTree

import pytest


@pytest.fixture
def texts() -> Callable[[str], list[str]]:
    """Every text of a piece of markup, in order; parsing it fails where it is not well formed."""
    def read(markup: str) -> list[str]:
        root = ElementTree.fromstring(f"<all>{markup.replace('&nbsp;', ' ')}</all>")
        return [text.strip() for text in root.itertext() if text.strip()]

    return read
