"""Process-wide changes that several users share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autogen_team._process import Undo
from autogen_team._process.forking import ForkSafeLock


class RefCount:
    """A change that is made for the first user and undone after the last. Thread-safe."""

    def __init__(self, make: Callable[..., Undo]) -> None:
        """Take `make`, which makes the change and returns a function that undoes it."""
        self._make = make
        self._lock = ForkSafeLock()
        self._users = 0
        self._undo: Undo | None = None

    def take(self, *arguments: Any) -> Undo:
        """Add a user and return a function that removes it; `make` gets the `arguments` of the first user."""
        with self._lock:
            if not self._users:
                self._undo = self._make(*arguments)
            self._users += 1
        return self._leave

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            undo = self._undo
            if not self._users and undo is not None:
                self._undo = None
                undo()
