"""Tools for a library inside another program's process: identity, forks, deadlines, streams and run events."""

from collections.abc import Callable
from typing import TypeAlias

from autogen_team._process import reports as reports  # any module may report an internal error

__all__ = ["Undo"]

Undo: TypeAlias = Callable[[], None]
"""Callable that reverts the change made by the function that returned it."""
