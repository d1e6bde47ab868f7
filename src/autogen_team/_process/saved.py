"""Temporary changes of process-wide values: environment variables, logger levels and globals of other libraries."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from autogen_team._process import Undo


class SavedValue:
    """Saved values of one global state, one for each holder, the innermost last.

    A holder that leaves out of order hands its value to the next holder. The last one to leave restores the first.
    """

    def __init__(
        self, apply: Callable[[Any], None], *, add: Callable[[Any, Any], Any] = lambda found, _: found
    ) -> None:
        """Take `apply`, which restores a value, and `add`, which merges the value of a leaving holder into the next."""
        self._apply = apply
        self._add = add
        self._found: list[list[Any]] = []

    def hold(self, found: Any) -> Undo:
        """Save a value; return a function that restores it."""
        mine = [found]
        self._found.append(mine)

        def leave() -> None:
            place = next(number for number, other in enumerate(self._found) if other is mine)
            del self._found[place]
            if place == len(self._found):
                self._apply(mine[0])
            else:
                self._found[place][0] = self._add(mine[0], self._found[place][0])

        return leave


def keep_environment(*names: str) -> Undo:
    """Save these environment variables; return a function that restores them."""
    return _environments.hold({name: os.environ.get(name) for name in names})


def restore_environment(before: dict[str, str | None]) -> None:
    """Set the variables to these values; None removes a variable."""
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


_environments = SavedValue(restore_environment, add=lambda found, later: {**later, **found})  # names may differ


@contextmanager
def quiet(name: str, below: int = logging.WARNING) -> Iterator[None]:
    """Silence this logger and its children inside the block, except for messages of level `below` and above."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(below)
    try:
        yield
    finally:
        logger.setLevel(level)
