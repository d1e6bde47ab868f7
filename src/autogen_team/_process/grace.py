"""Time limit for the whole shutdown after a signal.

Each wait at the end of a job has its own limit, and these limits add up. A scheduler allows one time for all of them
and then kills the job. So each wait takes at most half of the remaining time, and the next ones get the rest.
"""

from __future__ import annotations

import time

from autogen_team._process import Undo
from autogen_team._process.forking import call_in_child

_limits: list[float] = []
_until: float | None = None


def allow(seconds: float) -> Undo:
    """Limit a shutdown to this many seconds until the returned function is called; the latest limit counts."""
    _limits.append(seconds)

    def undo() -> None:
        _limits.remove(seconds)
        if not _limits:
            _end()

    return undo


def allowed() -> float | None:
    """Return the seconds that a shutdown may take; None if there is no limit."""
    return _limits[-1] if _limits else None


def begin(since: float | None = None) -> None:
    """Start the time limit of the shutdown, now or at `since` on the monotonic clock; later calls do nothing.

    Safe to call from a signal handler.
    """
    global _until
    if _limits and _until is None:
        _until = (time.monotonic() if since is None else since) + _limits[-1]


def bounded(seconds: float) -> float:
    """Return how long a wait may take: `seconds`, or less during a shutdown."""
    return seconds if _until is None else max(0.0, min(seconds, (_until - time.monotonic()) / 2))


def _end() -> None:
    global _until
    _until = None


call_in_child(_end)  # the signal was for the parent
