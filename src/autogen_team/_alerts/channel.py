"""Alerts, and the channels that deliver them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final, Protocol

from autogen_team._alerts.text import MESSAGE_LIMIT, TITLE_LIMIT, clean
from autogen_team._redact import Redactor
from autogen_team.errors import ConfigurationError

LEVELS: Final = ("info", "success", "warning", "error")


@dataclass(frozen=True, slots=True)
class Alert:
    """A cleaned title and message, with a level."""

    title: str
    message: str
    level: str = "info"
    brief: str = field(default="", repr=False, compare=False)
    """A shorter message for a console that has already shown the traceback."""


class UndeliveredError(Exception):
    """A channel did not accept an alert; the message gives the reason in one line, without secrets."""


class NoDesktopError(UndeliveredError):
    """This machine has no desktop, as is normal for a server."""


class NoAnswerError(UndeliveredError):
    """A channel did not answer in time; the alert may still arrive."""


class Channel(Protocol):
    """A way to deliver alerts. Its methods are called from one thread at a time."""

    name: str
    """Name in logs and tables, without secrets."""
    is_local: bool
    """Whether the channel answers in milliseconds, so that the caller of `notify` waits for it."""

    def takes(self, level: str) -> bool:
        """Return whether the channel accepts alerts of this level."""
        ...

    def deliver(self, alert: Alert) -> None:
        """Return when the alert is confirmed; raise an UndeliveredError otherwise."""

    def close(self) -> None:
        """Close connections; a later `deliver` opens new ones."""


@dataclass
class RecordingChannel:
    """A channel for tests: keeps the alerts, or refuses them with `fail_with`."""

    name: str = "recorder"
    is_local: bool = True
    fail_with: str | None = None
    alerts: list[Alert] = field(default_factory=list)
    """The delivered alerts, in order."""

    def takes(self, level: str) -> bool:
        """Accept every level."""
        return level in LEVELS

    def deliver(self, alert: Alert) -> None:
        """Keep the alert."""
        if self.fail_with is not None:
            raise UndeliveredError(self.fail_with)
        self.alerts.append(alert)

    def close(self) -> None:
        """Do nothing."""


def make_alert(title: object, message: object, level: str, brief: object = "") -> Alert:
    """Return an alert with a cleaned title, message and brief form.

    Raises:
        ConfigurationError: `level` is not one of the four.

    """
    if level not in LEVELS:
        raise ConfigurationError(f"alert level {level!r} does not exist: use one of {', '.join(LEVELS)}")
    mask = Redactor(os.environ)  # one redactor for all three texts
    texts = clean(title, TITLE_LIMIT, mask), clean(message, MESSAGE_LIMIT, mask), clean(brief, MESSAGE_LIMIT, mask)
    return Alert(texts[0], texts[1], level, texts[2])
