"""Delivers alerts without making the job wait: each channel has a worker, and unconfirmed alerts are printed.

An alert is *confirmed* when one channel confirms it. The caller waits only for the desktop, and at most a second.
Remote channels work in the background. An unconfirmed alert is printed when the last channel gives up, or on `stop`. So
a missing desktop does not matter if a remote channel delivers.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from autogen_team._alerts.channel import Alert, Channel, NoAnswerError, NoDesktopError, make_alert
from autogen_team._alerts.console import write_line
from autogen_team._alerts.cooldown import Cooldown
from autogen_team._alerts.desktop import desktop
from autogen_team._alerts.remote import open_channels
from autogen_team._alerts.text import console_text
from autogen_team._alerts.worker import Worker
from autogen_team._process import grace
from autogen_team._process.forking import start_afresh_after_fork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autogen_team._services.alerts import AlertsService

PATIENCE: Final = 1.0  # seconds that `notify` waits for the desktop
_CAPACITY: Final = 1000  # alerts that may wait for a channel; more are printed at once

_report = logging.getLogger("autogen_team")
_reported: set[str] = set()
"""Channels whose failure has been reported in this process."""


class _Lane:
    """A channel, and the worker that delivers one alert after another through it."""

    def __init__(self, channel: Channel, delivery: Delivery) -> None:
        self.channel = channel
        self.hangs = False
        """Whether the channel failed to answer in time, and has not answered since."""
        self.worker: Worker[_Ticket] = Worker(
            lambda ticket: delivery.carry(self, ticket), name=f"alerts to {channel.name}", capacity=_CAPACITY
        )


class _Ticket:
    """One alert, and the state of its delivery."""

    __slots__ = ("alert", "answered", "awaited", "closed", "confirmed", "waiting")

    def __init__(self, alert: Alert, waiting: set[_Lane], *, awaited: bool) -> None:
        self.alert = alert
        self.waiting = waiting
        """The lanes that have not yet delivered the alert or given up."""
        self.awaited = awaited
        """Whether a caller waits for the local lanes, and then closes the ticket."""
        self.answered = threading.Event()
        self.confirmed = False
        self.closed = False


class Delivery:
    """The engine behind an alerts service.

    Nothing is connected before the first alert. For tests, `channels` replaces the desktop and the URLs.

    Raises:
        ConfigurationError: Apprise does not know a URL.
        MissingExtraError: there are URLs and Apprise is not installed.

    """

    def __init__(self, settings: AlertsService, *, channels: Sequence[Channel] | None = None) -> None:
        self._settings = settings
        if channels is None:
            channels = open_all(settings)
        self._lanes = [_Lane(channel, self) for channel in channels if settings.enable]
        self._cooldown = Cooldown(settings.cooldown)
        self._stopped = False
        self.after_fork()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Drop the parent's alerts; the parent delivers and counts them itself."""
        self._lock = threading.RLock()  # reentrant, since a signal handler may notify while the lock is held
        self._changed = threading.Condition(self._lock)
        self._open: dict[_Ticket, None] = {}
        _known_at_exit.discard(self)
        self._cooldown.forget()
        for lane in self._lanes:
            lane.hangs = False

    def notify(self, title: object, message: object, level: str = "info", *, brief: object = "") -> None:
        """Send an alert, or print it, in its brief form if it has one; wait at most a second.

        Raises:
            ConfigurationError: `level` is not one of the four.

        """
        alert = make_alert(title, message, level, brief)
        if not self._settings.enable or self._stopped:
            self._print(alert)
            return
        try:
            admitted = self._cooldown.admit(alert)
            if admitted is None:
                self._stop_at_exit()
            else:
                self._send(admitted, patience=PATIENCE)
        except Exception as error:
            _report_once("alerts", f"{type(error).__name__}: {error}")
            self._print(alert)

    def flush(self, timeout: float) -> bool:
        """Wait until all channels have delivered each alert or given up; return False on a timeout."""
        with self._lock:
            pending = list(self._open)
            return self._changed.wait_for(lambda: not any(ticket in self._open for ticket in pending), timeout)

    def stop(self) -> None:
        """Send the counts of the cooldown, wait at most `flush_timeout`, and print unconfirmed alerts."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
        try:
            try:
                for alert in self._cooldown.drain():
                    self._send(alert, patience=None)
                self.flush(grace.bounded(self._settings.flush_timeout))
            finally:
                self._give_up()
        except Exception as error:
            _report_once("alerts", f"{type(error).__name__}: {error}")
        finally:
            _known_at_exit.discard(self)

    def carry(self, lane: _Lane, ticket: _Ticket) -> None:
        """Deliver one alert through one channel; called by the worker of the lane."""
        confirmed = False
        try:
            lane.channel.deliver(ticket.alert)
            confirmed = True
            lane.hangs = False
        except Exception as error:
            lane.hangs = isinstance(error, NoAnswerError)
            self._report_failure(lane.channel, ticket.alert, error)
        finally:  # even if a plugin exits, or a log handler of the job raises
            self._finish(ticket, lane, confirmed=confirmed)
            if lane.channel.is_local:
                ticket.answered.set()
            if not (lane.channel.is_local and ticket.awaited):
                self._close(ticket)

    def _send(self, alert: Alert, *, patience: float | None) -> None:
        lanes = [lane for lane in self._lanes if lane.channel.takes(alert.level)]
        ticket = _Ticket(alert, set(lanes), awaited=patience is not None)
        local: _Lane | None = None
        carried: set[_Lane] = set()
        try:
            with self._lock:
                self._open[ticket] = None
            self._stop_at_exit()
            for lane in lanes:
                # A hanging desktop gets one alert at a time, to see whether it is back; other alerts skip it.
                skip = lane.channel.is_local and lane.hangs and not lane.worker.is_idle
                if skip or not lane.worker.submit(ticket):
                    continue
                if lane.channel.is_local and patience is not None:
                    local = lane
                else:
                    carried.add(lane)
            if local is not None and patience is not None and not local.hangs and not ticket.answered.wait(patience):
                local.hangs = True
        finally:  # even after Ctrl-C
            for lane in lanes:
                if lane not in carried:
                    self._finish(ticket, lane, confirmed=False)
            self._close(ticket)

    def _finish(self, ticket: _Ticket, lane: _Lane, *, confirmed: bool) -> None:
        with self._lock:
            ticket.waiting.discard(lane)
            ticket.confirmed |= confirmed

    def _close(self, ticket: _Ticket) -> None:
        """Print the alert, once all its channels are done, if none of them has confirmed it."""
        with self._lock:
            if ticket.waiting or ticket.closed:
                return
            ticket.closed = True
        if not ticket.confirmed:
            self._print(ticket.alert)
        with self._lock:  # after the line is printed, so that a flush before an exit waits for the line
            self._open.pop(ticket, None)
            if not self._open and not self._cooldown.is_counting:
                _known_at_exit.discard(self)
            self._changed.notify_all()

    def _give_up(self) -> None:
        for lane in self._lanes:
            if lane.worker.stop():  # otherwise its thread still uses the connection
                lane.channel.close()
        with self._lock:
            late = list(self._open)
        for ticket in late:
            with self._lock:
                names = ", ".join(sorted(lane.channel.name for lane in ticket.waiting))
                ticket.waiting.clear()
            if ticket.confirmed and names:
                _report_once(f"late {names}", f"{names}: still not delivered when the alerts service stopped")
            self._close(ticket)

    def _print(self, alert: Alert) -> None:
        write_line(console_text(self._settings.app_name, alert.title, alert.brief or alert.message))

    def _report_failure(self, channel: Channel, alert: Alert, error: Exception) -> None:
        others = [lane for lane in self._lanes if lane.channel is not channel and lane.channel.takes(alert.level)]
        # Without a desktop, the alert itself is on the console, and `autogen-team doctor` gives the reason.
        if channel.is_local and (others or isinstance(error, NoDesktopError)):
            _report.debug("alerts: %s: %s", channel.name, error)
        else:
            _report_once(channel.name, f"{channel.name}: {error}; unconfirmed alerts are printed")

    def _stop_at_exit(self) -> None:
        """Register this delivery to be stopped at the exit of the process, unless it has already stopped."""
        if not self._stopped:
            _known_at_exit.add(self)
            _stop_at_exit_of_child()


def open_all(settings: AlertsService) -> list[Channel]:
    """Return the desktop and a channel for each URL; raise for an unusable URL even if alerts are disabled."""
    urls = [url.get_secret_value() for url in settings.urls]
    return [desktop(settings.app_name, settings.timeout), *open_channels(urls, settings.app_name)]


_known_at_exit: set[Delivery] = set()


def _stop_all() -> None:
    for delivery in list(_known_at_exit):
        delivery.stop()


atexit.register(_stop_all)
_child = 0
"""The child process of multiprocessing that has registered `_stop_all` as a finalizer."""


def _stop_at_exit_of_child() -> None:
    """Replace `atexit` in a child of multiprocessing, which exits by `os._exit` after its own finalizers."""
    global _child
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None and _child != os.getpid():
        from multiprocessing.util import Finalize

        Finalize(None, _stop_all, exitpriority=0)
        _child = os.getpid()


def _report_once(channel: str, what: str) -> None:
    if channel not in _reported:
        _reported.add(channel)
        with suppress(Exception):  # a log handler of the job may raise
            _report.warning("alerts: %s (reported once)", what)
