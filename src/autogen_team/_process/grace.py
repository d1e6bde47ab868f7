"""The time that everything may take together, once a signal has asked the process to end.

Each wait at the end of a job has a bound of its own, and they add up. A scheduler gives one time for all of them, and
then kills. So each wait takes at most half of what is left, and the next ones get the rest.
"""

from __future__ import annotations

import time

from autogen_team._process import Undo
from autogen_team._process.forking import call_in_child

_limits: list[float] = []
_until: float | None = None


def allow(seconds: float) -> Undo:
    """Allow this many seconds after a signal, until the returned function is called; the latest of several counts."""
    _limits.append(seconds)

    def undo() -> None:
        _limits.remove(seconds)
        if not _limits:
            _end()

    return undo


def allowed() -> float | None:
    """Return the seconds that are allowed after a signal; None if nothing bounds them."""
    return _limits[-1] if _limits else None


def begin(since: float | None = None) -> None:
    """Note that a signal has asked the process to end, now or at `since` on the monotonic clock; the first one counts.

    A signal handler may call it.
    """
    global _until
    if _limits and _until is None:
        _until = (time.monotonic() if since is None else since) + _limits[-1]


def bounded(seconds: float) -> float:
    """Return how long something may be waited for that is given `seconds` otherwise."""
    return seconds if _until is None else max(0.0, min(seconds, (_until - time.monotonic()) / 2))


def _end() -> None:
    global _until
    _until = None


call_in_child(_end)  # the child has not been asked
