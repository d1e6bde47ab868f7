"""What an alert is, and what can carry one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final, Protocol

from autogen_team.errors import ConfigurationError
from autogen_team.io._alerts.text import MESSAGE_LIMIT, TITLE_LIMIT, clean
from autogen_team.io._redact import Redactor

LEVELS: Final = ("info", "success", "warning", "error")


@dataclass(frozen=True, slots=True)
class Alert:
    """Clean text for people, and how much it matters."""

    title: str
    message: str
    level: str = "info"
    brief: str = field(default="", repr=False, compare=False)
    """What the console shows in the place of the message, if that has shown the rest of it already."""


class UndeliveredError(Exception):
    """A channel did not take an alert; says why in one line, without secrets."""


class NoDesktopError(UndeliveredError):
    """There is no desktop, as on any server."""


class NoAnswerError(UndeliveredError):
    """A channel did not answer in time; the alert may arrive yet."""


class Channel(Protocol):
    """A way to reach people. Its methods are called from one thread at a time."""

    name: str
    """What a log or a table may call it, without secrets."""
    is_local: bool
    """Whether it answers in milliseconds, so that the caller of `notify` waits for it."""

    def takes(self, level: str) -> bool:
        """Tell whether alerts of this level go this way."""
        ...

    def deliver(self, alert: Alert) -> None:
        """Return when the alert is confirmed; raise an UndeliveredError if it is not."""

    def close(self) -> None:
        """Let go of connections; `deliver` makes new ones if it is called again."""


@dataclass
class RecordingChannel:
    """A channel for tests: keeps what it is given, or refuses it with `fail_with`."""

    name: str = "recorder"
    is_local: bool = True
    fail_with: str | None = None
    alerts: list[Alert] = field(default_factory=list)
    """What was delivered, in order."""

    def takes(self, level: str) -> bool:
        """Take each level."""
        return level in LEVELS

    def deliver(self, alert: Alert) -> None:
        """Keep the alert."""
        if self.fail_with is not None:
            raise UndeliveredError(self.fail_with)
        self.alerts.append(alert)

    def close(self) -> None:
        """Do nothing."""


def make_alert(title: object, message: object, level: str, brief: object = "") -> Alert:
    """Return an alert of any title, message and form for the console, cleaned.

    Raises:
        ConfigurationError: `level` is none of the four.

    """
    if level not in LEVELS:
        raise ConfigurationError(f"alert level {level!r} does not exist: use one of {', '.join(LEVELS)}")
    mask = Redactor(os.environ)  # made once for all
    texts = clean(title, TITLE_LIMIT, mask), clean(message, MESSAGE_LIMIT, mask), clean(brief, MESSAGE_LIMIT, mask)
    return Alert(texts[0], texts[1], level, texts[2])
