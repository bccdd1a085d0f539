"""Typed options: dataclasses validated once, then sealed. Imports neither torch nor numpy."""
