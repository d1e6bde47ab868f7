"""Alerts as a service."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from autogen_team._process import identity, run_events
from autogen_team._services.base import Service
from autogen_team._services.fields import Seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from autogen_team._alerts.channel import Channel
    from autogen_team._alerts.delivery import Delivery
    from autogen_team._alerts.trial import Outcome

__all__ = ["AlertsService"]

_report = logging.getLogger("autogen_team")


def _split(value: object) -> object:
    return tuple(value.split()) if isinstance(value, str) else value


def _checked(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        parts = urlsplit(value.get_secret_value().strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected a URL with http:// or https:// and a host")
    return value


class AlertsService(Service):
    """Notifications to the desktop and to remote channels; alerts that cannot be delivered are printed.

    >>> AlertsService(enable=False, app_name="train").notify("done", "model trained")
    [train] done: model trained
    """

    __slots__ = ("_delivery",)

    variable_prefix: ClassVar[str] = "AUTOGEN_TEAM_ALERTS_"

    enable: bool = True
    """Send alerts. If false, print `[app_name] title: message` on stdout, or on stderr under `run`."""
    app_name: str = "autogen_team"
    """Name of the application, shown by the desktop and the console."""
    timeout: Annotated[int, Field(ge=0)] | None = None
    """Seconds that a desktop notification stays; 0 until dismissed, None for the desktop's default."""
    urls: Annotated[tuple[SecretStr, ...], BeforeValidator(_split)] = ()
    """Remote channels (Slack, email, Teams) as Apprise URLs, separated by spaces. Needs the extra `alerts`."""
    cooldown: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds during which repeated alerts (same level and title) are counted instead of sent; 0 sends all."""
    ping: Annotated[SecretStr | None, AfterValidator(_checked)] = None
    """URL of a dead man's switch such as healthchecks.io, which is told the job's start, success and failure."""
    on_nan: bool = False
    """Send an alert about the first NaN or infinite metric of each run."""
    flush_timeout: Seconds = 2.0
    """Seconds that `stop` and process exit wait for pending alerts; the rest are printed."""

    def start(self) -> None:
        """Check the channels and subscribe to run events for `ping` and `on_nan`; no alert is sent.

        Raises:
            ConfigurationError: Apprise does not know a URL. The message shows the URL masked.
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
        """Wait at most `flush_timeout` seconds for pending alerts, then print the alerts that no channel confirmed."""
        with self._lock:
            found: Delivery | None = getattr(self, "_delivery", None)
            object.__setattr__(self, "_delivery", None)
        super().stop()
        if found is not None:  # created by an alert before `start`
            found.stop()

    def notify(
        self, title: str, message: str, *, level: Literal["info", "success", "warning", "error"] = "info"
    ) -> None:
        """Send an alert. This also works before `start`, from any thread, in an event loop and after a fork.

        The call waits at most a second. It never raises because of delivery: an alert that no channel confirms is
        printed. A worker sends only errors and logs other alerts, because all workers of a job might send them.

        Raises:
            ConfigurationError: `level` is not one of the four; or, before `start`, Apprise does not know a URL.
            MissingExtraError: before `start`, there are URLs and the extra `alerts` is not installed.

        """
        self._notify(title, message, level=level)

    def _notify(self, title: str, message: str, *, level: str, brief: str = "") -> None:
        if level in ("info", "success", "warning") and identity.worker() is not None:
            from autogen_team._alerts.channel import make_alert

            alert = make_alert(title, message, level)  # masked
            _report.warning("alert from a worker, not sent: %s: %s", alert.title, alert.message)
        else:
            self._deliverer().notify(title, message, level, brief=brief)

    def deliver_now(
        self, title: str, message: str, *, level: Literal["info", "success", "warning", "error"] = "info"
    ) -> list[Outcome]:
        """Send an alert through every channel, wait at most 15 s, and return the result of each channel.

        Raises:
            ConfigurationError: `level` is not one of the four, or Apprise does not know a URL.
            MissingExtraError: there are URLs and the extra `alerts` is not installed.

        """
        from autogen_team._alerts import trial

        return trial.deliver_now(self, title, message, level)

    def report_runs(self, when: Literal["failure", "always"]) -> Callable[[], None]:
        """Send an alert when a run of this process ends, until the returned function is called.

        With `failure`, only FAILED and KILLED runs are reported. With `always`, rank 0 also reports FINISHED runs. A
        run inside another run is not reported.
        """
        from autogen_team._alerts.report import Reporter

        return run_events.subscribe(Reporter(self._notify, always=when == "always"))

    @contextmanager
    def delivering_to(self, channel: Channel) -> Generator[None, None, None]:
        """Send alerts only to this channel inside the block; for `autogen_team.testing`."""
        from autogen_team._alerts import delivery

        mine = delivery.Delivery(self.model_copy(update={"enable": True}), channels=[channel])
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
        """Return the variables that `environment` omits, for a process that sends alerts on behalf of this one."""
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

                found = delivery.Delivery(self)
                object.__setattr__(self, "_delivery", found)
            return found
