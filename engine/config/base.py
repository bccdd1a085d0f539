"""Strict configuration: validated when built, sealed afterwards."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from engine.errors import ConfigError, nearest_name


class Config:
    """Base of every option class.

    ``validate`` runs when an instance is built; afterwards assignment raises, so nobody bends an option
    in the middle of a run. Hydra cannot build frozen dataclasses, hence the seal.
    """

    def __post_init__(self) -> None:
        self.validate()
        object.__setattr__(self, "_sealed", True)

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_sealed", False):
            known = [field.name for field in fields(self)]  # type: ignore[arg-type]
            if name not in known:
                raise ConfigError(name, value, f"there is no such option; {nearest_name(name, known)}")
            raise ConfigError(name, value, "options are sealed once built; build a new config")
        object.__setattr__(self, name, value)

    def validate(self) -> None:
        """Raise :class:`ConfigError` for what cannot work; called once."""


def require(condition: bool, key: str, value: Any, remedy: str) -> None:
    """Raise a :class:`ConfigError` unless the condition holds."""
    if not condition:
        raise ConfigError(key, value, remedy)


def as_dict(config: Any) -> Any:
    """Plain containers of an option tree, enums by value: what ``config.yaml`` holds."""
    if is_dataclass(config) and not isinstance(config, type):
        return {field.name: as_dict(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, (list, tuple)):
        return [as_dict(value) for value in config]
    if isinstance(config, dict):
        return {key: as_dict(value) for key, value in config.items()}
    return getattr(config, "value", config)
