"""The logger by which we report our own faults: in force however the job configures logging."""

from __future__ import annotations

import logging

NAME = "autogen_team"


def keep_enabled() -> None:
    """Make the logger `autogen_team` one that cannot be disabled; its level and its handlers are the job's to set.

    `logging.config.dictConfig` and `fileConfig` disable each logger that they do not name, unless they are told not to.
    A full disk or an alert that fails would be reported no more.
    """
    logger = logging.getLogger(NAME)
    kind = type(logger)
    if not isinstance(vars(kind).get("disabled"), property):
        never = property(lambda _: False, lambda _self, _value: None)
        logger.__class__ = type(kind.__name__, (kind,), {"disabled": never, "__doc__": kind.__doc__})


keep_enabled()
