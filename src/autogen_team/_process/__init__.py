"""Tools for a library that lives in the process of others: identity, forks, deadlines, streams and events of runs."""

from collections.abc import Callable
from typing import TypeAlias

from autogen_team._process import reports as reports  # any module may report a fault

__all__ = ["Undo"]

Undo: TypeAlias = Callable[[], None]
"""Takes back what the function that returned it has done."""
