"""Captures log records of libraries while they deliver an alert: reasons of failures, and URLs that are secrets.

At DEBUG, apprise logs whole webhook URLs and payloads, and urllib3 logs the paths of requests. At WARNING, apprise logs
why an alert was refused, which its return value does not say. Neither belongs in the job's log for each attempt.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGGERS = ("apprise", "urllib3.connectionpool", "urllib3.util.retry")


class _Catch(logging.Filter, threading.local):
    """Filter that captures the records of threads that are delivering an alert; other threads log as usual."""

    said: list[str] | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if self.said is None:
            return True
        if record.levelno >= logging.WARNING:
            self.said.append(record.getMessage())
        return False


_catch = _Catch()


@contextmanager
def hushed() -> Iterator[list[str]]:
    """Keep this thread's deliveries out of every log; yield the list that collects their warnings."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_catch)  # adding it again changes nothing
    said: list[str] = []
    _catch.said = said
    try:
        yield said
    finally:
        _catch.said = None
