"""Counts repeated alerts instead of sending them again."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autogen_team._alerts.channel import Alert

_FORGET_AT = 256  # titles; memory must not grow without bound if a job puts the epoch into each title


@dataclass(slots=True)
class _Entry:
    since: float
    alert: Alert
    more: int = 0


class Cooldown:
    """Filter that admits the same level and title once in `seconds`; the next admitted alert gives the count."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.forget()

    def forget(self) -> None:
        """Reset the counts, for example in a forked child, because the parent reports its own counts."""
        self._lock = threading.RLock()  # reentrant for signal handlers
        self._entries: dict[tuple[str, str], _Entry] = {}

    @property
    def is_counting(self) -> bool:
        """Whether any count has not been reported by an alert yet."""
        with self._lock:
            return any(entry.more for entry in self._entries.values())

    def admit(self, alert: Alert) -> Alert | None:
        """Return the alert to send, or None if it was only counted."""
        if self._seconds <= 0:
            return alert
        with self._lock:
            now = time.monotonic()
            entry = self._entries.get((alert.level, alert.title))
            if entry is not None and now - entry.since < self._seconds:
                entry.more += 1
                return None
            if len(self._entries) >= _FORGET_AT:
                self._forget_expired(now)
            self._entries[alert.level, alert.title] = _Entry(now, alert)
            return alert if entry is None else _with_count(alert, entry.more)

    def drain(self) -> list[Alert]:
        """Return an alert for each unreported count, and reset all counts."""
        with self._lock:
            entries, self._entries = self._entries, {}
        return [
            _with_count(replace(entry.alert, message="", brief=""), entry.more)
            for entry in entries.values()
            if entry.more
        ]

    def _forget_expired(self, now: float) -> None:
        self._entries = {
            key: entry for key, entry in self._entries.items() if entry.more or now - entry.since < self._seconds
        }


def _with_count(alert: Alert, more: int) -> Alert:
    if not more:
        return alert
    count = f"({more} more)"
    brief = f"{alert.brief} {count}" if alert.brief else ""
    return replace(alert, message=f"{alert.message} {count}".lstrip(), brief=brief)
