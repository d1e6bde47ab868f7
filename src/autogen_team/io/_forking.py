"""Objects that hold locks, threads or queues, of which a forked child needs its own."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """An object that can start afresh."""

    def after_fork(self) -> None:
        """Start afresh; called in the child, before anything else runs in it."""


_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()


def start_afresh_after_fork(it: Forkable) -> None:
    """Call `it.after_fork` in every child that this process forks, for as long as `it` is alive."""
    _forkables.add(it)


def _after_fork() -> None:
    for it in list(_forkables):
        it.after_fork()


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_after_fork)
