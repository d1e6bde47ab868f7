"""What happens when a line cannot be written: one report, then a count, until writing works again."""

from __future__ import annotations

import logging
import threading

_report = logging.getLogger("autogen_team")
_state = threading.local()


def is_reporting() -> bool:
    """Tell whether the calling code handles a report about logging itself, which the log is not fit for."""
    return getattr(_state, "reporting", False)


def report(message: str, *args: object) -> None:
    """Tell about a fault of logging, on the ways that are left."""
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
        """Lines that were not written since the last one that was."""

    def count(self, error: BaseException) -> bool:
        """Count a line as lost, and tell whether it is the first, to be reported once no lock is held."""
        self.lost += 1
        self._last = f"{type(error).__name__}: {error}"
        return self.lost == 1

    def report(self) -> None:
        """Tell that lines are being lost."""
        report(
            "cannot write the log to %s: %s; the job goes on, lines are counted until it works again",
            self._destination,
            self._last,
        )

    def over(self) -> str:
        """Start counting anew, and return what is to be said about the lines that were lost."""
        lost, self.lost = self.lost, 0
        return f"{lost} line{'' if lost == 1 else 's'} of log could not be written here: {self._last}"

    def close(self) -> None:
        """Report the count of what was lost for good."""
        if self.lost:
            report("%s: %s", self._destination, self.over())
