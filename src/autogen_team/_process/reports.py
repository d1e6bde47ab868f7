"""The logger for our own faults, which stays enabled however the job configures logging."""

from __future__ import annotations

import logging

NAME = "autogen_team"


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
