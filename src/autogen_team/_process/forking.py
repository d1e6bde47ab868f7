"""Reset the state that a forked child must not share: locks, threads, queues and module globals."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol


def call_in_child(function: Callable[[], None]) -> None:
    """Call `function` in every child that this process forks, before anything else runs there."""
    if hasattr(os, "register_at_fork"):  # Windows cannot fork
        os.register_at_fork(after_in_child=function)


class Forkable(Protocol):
    """An object that resets itself in a forked child."""

    def after_fork(self) -> None:
        """Reset the object; called in the child, before anything else runs there."""


_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()


def start_afresh_after_fork(it: Forkable) -> None:
    """Call `it.after_fork` in every child that this process forks, as long as `it` is alive."""
    _forkables.add(it)


def _start_all_afresh() -> None:
    for it in list(_forkables):
        it.after_fork()


call_in_child(_start_all_afresh)


class ForkSafeLock:
    """A reentrant lock that a forked child replaces, because no thread there would release the parent's lock."""

    def __init__(self) -> None:
        self.after_fork()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Make a new, free lock."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # the parent entered the block before the fork
            self._lock.release()
