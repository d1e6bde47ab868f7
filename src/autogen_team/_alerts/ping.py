"""Notifies a dead man's switch of the start and the end of a job."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from autogen_team import _redact
from autogen_team._alerts.report import job_ended
from autogen_team._alerts.worker import Worker
from autogen_team._process import grace, identity, run_events
from autogen_team._redact import mask
from autogen_team._ship import ping

_CAPACITY = 100

_report = logging.getLogger("autogen_team")


class _Ping(NamedTuple):
    event: ping.Event
    body: str = ""


class Pinger(run_events.Listener):
    """Sends pings for the outermost runs of the job, but none from workers and from ranks other than 0.

    A thread sends the pings, so the job does not wait. A failed ping is not retried once there is a newer one.
    """

    def __init__(self, url: str, flush_timeout: float) -> None:
        """Send to `url`; `stop` waits for the last ping at most `flush_timeout` seconds."""
        _redact.add_secrets(url)
        self._url = url
        self._flush_timeout = flush_timeout
        self._pid = os.getpid()
        self._worker: Worker[_Ping] = Worker(self._send, name="pings", capacity=_CAPACITY)
        self._latest: _Ping | None = None
        self._is_sent = threading.Event()
        self._is_sent.set()
        self._is_reported = False
        atexit.register(self.stop)

    def run_started(self, run: run_events.Run) -> None:
        """Send a ping for the start."""
        if self._is_job(run):
            self._submit(_Ping("start"))

    def run_ended(self, run: run_events.Run, end: run_events.End) -> None:
        """Send a ping for a success, or for a failure with the text of the alert as the body."""
        if not self._is_job(run) or end.is_overtaken:  # the job goes on elsewhere, and sends its own pings
            return
        if end.status == "FINISHED":
            self._submit(_Ping("success"))
        else:
            title, message, _, _ = job_ended(run, end, host=socket.gethostname(), rank=0)
            self._submit(_Ping("fail", f"{title}\n{message}"))

    def stop(self) -> None:
        """Wait for the last ping, then stop."""
        atexit.unregister(self.stop)
        if os.getpid() != self._pid:
            return
        patience = grace.bounded(self._flush_timeout)
        if not self._is_sent.wait(patience) and self._latest is not None:
            self._fail(self._latest, f"it did not answer within {patience:g} s")
        self._worker.stop()

    def _is_job(self, run: run_events.Run) -> bool:
        is_ours = os.getpid() == self._pid and identity.worker() is None and not identity.rank()
        return is_ours and run.is_outermost and run.parent_id is None

    def _submit(self, one: _Ping) -> None:
        self._latest = one
        self._is_sent.clear()
        if not self._worker.submit(one):  # the interpreter is shutting down, or cannot start a thread
            self._send(one, is_bounded=True)

    def _send(self, one: _Ping, *, is_bounded: bool = False) -> None:
        try:
            ping.send(self._url, one.event, one.body, is_wanted=lambda: one is self._latest and not is_bounded)
        except ping.PingError as error:
            self._fail(one, mask(str(error)))
        finally:
            if one is self._latest:
                self._is_sent.set()

    def _fail(self, one: _Ping, reason: str) -> None:
        if one is not self._latest or self._is_reported:
            return
        self._is_reported = True
        with suppress(Exception):  # a log handler of the job may raise
            text = "the dead man's switch at %s could not be notified of the job's %s: %s (reported once)"
            _report.warning(text, urlsplit(self._url).hostname, one.event, reason)
