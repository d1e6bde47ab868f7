"""The logger for internal errors, which stays enabled however the job configures logging, and a guard that uses it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "autogen_team"


@contextmanager
def guard(text: str, *arguments: object) -> Iterator[None]:
    """Suppress an exception of the block, and log it as a warning with this text and a traceback."""
    try:
        yield
    except Exception:
        logging.getLogger(NAME).warning(text, *arguments, exc_info=True)


def keep_enabled() -> None:
    """Keep the logger `autogen_team` enabled; the job can still set its level and handlers.

    By default, `logging.config.dictConfig` and `fileConfig` disable each logger that they do not name. Then a full disk
    or a failed alert would no longer be reported.
    """
    logger = logging.getLogger(NAME)
    kind = type(logger)
    if not isinstance(vars(kind).get("disabled"), property):
        never = property(lambda _: False, lambda _self, _value: None)
        logger.__class__ = type(kind.__name__, (kind,), {"disabled": never, "__doc__": kind.__doc__})


keep_enabled()
