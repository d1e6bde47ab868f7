"""Alerts as a service."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from autogen_team._process import identity, run_events
from autogen_team._services.base import Service
from autogen_team._services.fields import Seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from autogen_team._alerts.channel import Channel
    from autogen_team._alerts.delivery import Delivery
    from autogen_team._alerts.delivery import Settings as DeliverySettings
    from autogen_team._alerts.trial import Outcome

__all__ = ["AlertsService"]

_report = logging.getLogger("autogen_team")


def _split(value: object) -> object:
    return tuple(value.split()) if isinstance(value, str) else value


def _checked(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        parts = urlsplit(value.get_secret_value().strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("a URL that begins with http:// or https:// and names a host is expected")
    return value


class AlertsService(Service):
    """Notifications for people: on the desktop, through remote channels, and on the console as the last resort.

    >>> AlertsService(enable=False, app_name="train").notify("done", "model trained")
    [train] done: model trained
    """

    __slots__ = ("_delivery",)

    variable_prefix: ClassVar[str] = "AUTOGEN_TEAM_ALERTS_"

    enable: bool = True
    """Whether alerts are sent; otherwise `[app_name] title: message` is printed on stdout, in `run` on stderr."""
    app_name: str = "autogen_team"
    """Name of the application, as the desktop and the console show it."""
    timeout: Annotated[int, Field(ge=0)] | None = None
    """Seconds that a desktop notification stays; 0 until it is dismissed, None leaves it to the desktop."""
    urls: Annotated[tuple[SecretStr, ...], BeforeValidator(_split)] = ()
    """Remote channels as Apprise URLs, separated by spaces in a variable: Slack, mail, Teams (extra `alerts`)."""
    cooldown: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds during which alerts of the same level and title are counted instead of sent; 0 sends each."""
    ping: Annotated[SecretStr | None, AfterValidator(_checked)] = None
    """URL of a dead man's switch such as healthchecks.io, which hears of start, success and failure of the job."""
    on_nan: bool = False
    """Alert about the first metric of each run that is NaN or infinite, with its step."""
    flush_timeout: Seconds = 2.0
    """Seconds that `stop` and the exit of the process wait for alerts on their way; what is left is printed."""

    def start(self) -> None:
        """Check the channels, and begin to listen for what `ping` and `on_nan` ask for; nothing is sent.

        Raises:
            ConfigurationError: Apprise does not know a URL; the message shows it masked.
            MissingExtraError: there are URLs and the extra `alerts` is not installed.

        """
        with self._lock:
            if self.is_started:
                return
            with ExitStack() as undo:
                undo.callback(self._deliverer().stop)
                if self.on_nan:
                    from autogen_team._alerts.not_finite import NotFiniteReporter

                    undo.callback(run_events.subscribe(NotFiniteReporter(self._notify)))
                if self.ping is not None and self.enable and identity.worker() is None:
                    self._start_pings(undo, self.ping.get_secret_value().strip())
                self._on_stop(undo.pop_all().close)

    def stop(self) -> None:
        """Wait for alerts on their way, at most `flush_timeout` seconds; print those that no channel has confirmed."""
        with self._lock:
            found: Delivery | None = getattr(self, "_delivery", None)
            object.__setattr__(self, "_delivery", None)
        super().stop()
        if found is not None:  # made by an alert that was sent before `start`
            found.stop()

    def notify(
        self, title: str, message: str, *, level: Literal["info", "success", "warning", "error"] = "info"
    ) -> None:
        """Send an alert; works before `start` too, from any thread, in an event loop and after a fork.

        Waits at most a second, and raises nothing about the delivery: an alert that no channel confirms is printed. A
        worker of a job sends errors only. It logs alerts of other levels, since there may be as many as there are
        workers.

        Raises:
            ConfigurationError: `level` is not one of the four; or, before `start`, Apprise does not know a URL.
            MissingExtraError: before `start`, there are URLs and the extra `alerts` is not installed.

        """
        self._notify(title, message, level=level)

    def _notify(self, title: str, message: str, *, level: str, brief: str = "") -> None:
        if level in ("info", "success", "warning") and identity.worker() is not None:
            from autogen_team._alerts.channel import make_alert

            alert = make_alert(title, message, level)  # masked
            _report.warning("alert of a worker, not sent: %s: %s", alert.title, alert.message)
        else:
            self._deliverer().notify(title, message, level, brief=brief)

    def deliver_now(
        self, title: str, message: str, *, level: Literal["info", "success", "warning", "error"] = "info"
    ) -> list[Outcome]:
        """Send an alert through every channel while the caller waits, at most 15 s; return the result of each channel.

        Raises:
            ConfigurationError: `level` is not one of the four, or Apprise does not know a URL.
            MissingExtraError: there are URLs and the extra `alerts` is not installed.

        """
        from autogen_team._alerts import trial

        return trial.deliver_now(self._delivery_settings(), title, message, level)

    def report_runs(self, when: Literal["failure", "always"]) -> Callable[[], None]:
        """Alert when a run of this process ends, until the returned function is called.

        With `failure`, only FAILED and KILLED runs are reported. With `always`, FINISHED ones are too, by rank 0 alone.
        A run inside another run is not reported; it is the job's own business.
        """
        from autogen_team._alerts.report import Reporter

        return run_events.subscribe(Reporter(self._notify, always=when == "always"))

    @contextmanager
    def delivering_to(self, channel: Channel) -> Generator[None, None, None]:
        """Send alerts to this channel alone inside the block; for `autogen_team.testing`."""
        from autogen_team._alerts import delivery

        settings = dataclasses.replace(self._delivery_settings(), enable=True)
        mine = delivery.Delivery(settings, channels=[channel])
        with self._lock:
            before: Delivery | None = getattr(self, "_delivery", None)
            object.__setattr__(self, "_delivery", mine)
        try:
            yield
        finally:
            mine.stop()
            with self._lock:
                object.__setattr__(self, "_delivery", before)

    def secrets(self) -> dict[str, str]:
        """Return the variables that `environment` leaves out, for a process that alerts in the name of this one."""
        urls = " ".join(url.get_secret_value() for url in self.urls)
        return {type(self).variables()["urls"]: urls} if urls else {}

    def _start_pings(self, undo: ExitStack, url: str) -> None:
        from autogen_team._alerts.ping import Pinger
        from autogen_team._ship import ping

        pinger = Pinger(url, self.flush_timeout)
        undo.callback(pinger.stop)
        undo.callback(run_events.subscribe(pinger))
        undo.callback(ping.note_job(url))

    def _deliverer(self) -> Delivery:
        with self._lock:
            found: Delivery | None = getattr(self, "_delivery", None)
            if found is None:
                from autogen_team._alerts import delivery

                found = delivery.Delivery(self._delivery_settings())
                object.__setattr__(self, "_delivery", found)
            return found

    def _delivery_settings(self) -> DeliverySettings:
        from autogen_team._alerts import delivery

        names = {field.name for field in dataclasses.fields(delivery.Settings)}
        fields: dict[str, Any] = {name: getattr(self, name) for name in names}
        fields["urls"] = tuple(url.get_secret_value() for url in self.urls)
        return delivery.Settings(**fields)
