from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import ConfigError


@pytest.fixture
def refused() -> Callable[..., None]:
    """Check that options are refused under the dotted key, with the value and a remedy."""

    def check(cls: Any, options: dict[str, Any], key: str) -> None:
        with pytest.raises(ConfigError) as caught:
            cls(**options)
        error = caught.value
        assert error.key == key
        assert error.remedy
        assert str(error) == f"{key}={error.value!r}: {error.remedy}"
        leaf = key.rpartition(".")[2]
        if leaf in options:
            assert error.value == options[leaf]

    return check
