"""Sends one alert through each channel and waits, to see which channels work."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from autogen_team._alerts.channel import Alert, Channel, UndeliveredError, make_alert
from autogen_team._alerts.console import write_line
from autogen_team._alerts.delivery import open_all
from autogen_team._alerts.text import console_text
from autogen_team._process.threads import spawn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autogen_team._services.alerts import AlertsService

DEADLINE: Final = 15.0  # seconds: three attempts at an endpoint that hangs for four seconds each time


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an alert in one channel."""

    channel: str
    """Name of the channel, without secrets."""
    delivered: bool
    reason: str
    """Why the alert was not delivered; empty if it was."""
    milliseconds: float


def deliver_now(
    settings: AlertsService,
    title: object,
    message: object,
    level: str = "info",
    *,
    timeout: float = DEADLINE,
    channels: Sequence[Channel] | None = None,
) -> list[Outcome]:
    """Send an alert through the desktop and each URL at the same time; return the results within `timeout` seconds.

    With alerts disabled, the alert is printed, and that is the only result. A channel that does not answer in time
    leaves a thread behind, which does not keep the process alive.

    Raises:
        ConfigurationError: `level` is not one of the four, or Apprise does not know a URL.
        MissingExtraError: there are URLs and Apprise is not installed.

    """
    alert = make_alert(title, message, level)
    if channels is None:
        channels = open_all(settings)
    if not settings.enable:
        started = time.monotonic()
        write_line(console_text(settings.app_name, alert.title, alert.message))
        return [Outcome("console", delivered=True, reason="", milliseconds=(time.monotonic() - started) * 1000)]
    answers = [_start(channel, alert) for channel in channels]
    deadline = time.monotonic() + timeout
    return [_wait(channel, answer, timeout, deadline) for channel, answer in zip(channels, answers, strict=True)]


def _start(channel: Channel, alert: Alert) -> queue.SimpleQueue[Outcome]:
    answer: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def work() -> None:
        answer.put(_try(channel, alert))

    if spawn(work, name=f"alert to {channel.name}") is None:
        work()
    return answer


def _wait(channel: Channel, answer: queue.SimpleQueue[Outcome], timeout: float, deadline: float) -> Outcome:
    try:
        return answer.get(timeout=max(deadline - time.monotonic(), 0.0))
    except queue.Empty:
        return Outcome(
            channel.name, delivered=False, reason=f"no answer within {timeout:g} s", milliseconds=timeout * 1000
        )


def _try(channel: Channel, alert: Alert) -> Outcome:
    if not channel.takes(alert.level):
        return Outcome(channel.name, delivered=False, reason=f"not tagged for {alert.level}", milliseconds=0.0)
    started = time.monotonic()
    reason = ""
    try:
        channel.deliver(alert)
        channel.close()
    except UndeliveredError as error:
        reason = str(error)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    milliseconds = (time.monotonic() - started) * 1000
    return Outcome(channel.name, delivered=not reason, reason=reason, milliseconds=milliseconds)
