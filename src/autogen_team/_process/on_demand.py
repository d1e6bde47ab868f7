"""Callbacks that start a context when a job of `autogen-team run` first asks for one."""

from __future__ import annotations

from collections.abc import Callable

_starters: list[Callable[[], object]] = []


def start_when_asked(start: Callable[[], object]) -> None:
    """Call `start` whenever code asks for the current context and none is running."""
    _starters.append(start)


def asked() -> None:
    """Call the registered functions: code asks for the current context, and none is running."""
    for start in _starters:
        start()
