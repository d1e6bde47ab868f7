"""Faults of a log destination: the first is reported, the rest are counted until writing works again."""

from __future__ import annotations

import logging
import threading

_report = logging.getLogger("autogen_team")


class _State(threading.local):
    reporting = False


_state = _State()


def is_reporting() -> bool:
    """Return whether this thread is reporting a fault of logging; the report must not go to the log."""
    return _state.reporting


def report(message: str, *args: object) -> None:
    """Report a fault of logging through the `autogen_team` logger, but not in the log."""
    _state.reporting = True
    try:
        _report.warning(message, *args)
    finally:
        _state.reporting = False


class Faults:
    """The faults of one destination."""

    def __init__(self, destination: str) -> None:
        self._destination = destination
        self._last = ""
        self.lost = 0
        """Number of lines lost since the last line that was written."""

    def count(self, error: BaseException) -> bool:
        """Count a lost line; return True for the first one, to be reported once the caller holds no lock."""
        self.lost += 1
        self._last = f"{type(error).__name__}: {error}"
        return self.lost == 1

    def report(self) -> None:
        """Report that lines are being lost."""
        report(
            "cannot write the log to %s: %s; the job continues, and missing lines are counted until it works again",
            self._destination,
            self._last,
        )

    def over(self) -> str:
        """Reset the count, and return a message about the lines that were lost."""
        lost, self.lost = self.lost, 0
        return f"{lost} line{'' if lost == 1 else 's'} of log could not be written here: {self._last}"

    def close(self) -> None:
        """Report how many lines were finally lost, if any."""
        if self.lost:
            report("%s: %s", self._destination, self.over())
