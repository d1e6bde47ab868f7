"""The logger for our own faults, which stays enabled however the job configures logging, and a guard that uses it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "autogen_team"


@contextmanager
def guard(text: str, *arguments: object) -> Iterator[None]:
    """Report an exception of the block as a warning with this text and a traceback, and keep it from the job."""
    try:
        yield
    except Exception:
        logging.getLogger(NAME).warning(text, *arguments, exc_info=True)


def keep_enabled() -> None:
    """Make the logger `autogen_team` impossible to disable; the job still sets its level and handlers.

    `logging.config.dictConfig` and `fileConfig` disable each logger that they do not name, unless told otherwise. Then
    a full disk or a failed alert would not be reported any more.
    """
    logger = logging.getLogger(NAME)
    kind = type(logger)
    if not isinstance(vars(kind).get("disabled"), property):
        never = property(lambda _: False, lambda _self, _value: None)
        logger.__class__ = type(kind.__name__, (kind,), {"disabled": never, "__doc__": kind.__doc__})


keep_enabled()
