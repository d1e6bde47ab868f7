"""What is put in place only once a job asks for it, in a job of `autogen-team run` that has needed nothing so far."""

from __future__ import annotations

from collections.abc import Callable

_starters: list[Callable[[], object]] = []


def start_when_asked(start: Callable[[], object]) -> None:
    """Call `start` when a context is asked for and none runs."""
    _starters.append(start)


def asked() -> None:
    """Note that a context is asked for, and none runs."""
    for start in _starters:
        start()
