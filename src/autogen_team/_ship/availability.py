"""Availability of a store: one warning when it stops answering, one when it answers again, no long waits in between."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import NoReturn

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from autogen_team._redact import mask, mask_url
from autogen_team._ship import server_probe
from autogen_team.errors import TrackingUnavailableError

_FRESH = 1.0
"""Seconds for which the result of a check is valid, whether the store answered or not."""

_report = logging.getLogger("autogen_team")


class StoreUnavailableError(MlflowException, TrackingUnavailableError):
    """The store does not answer. Code that catches MLflow's own errors catches this one too."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=TEMPORARILY_UNAVAILABLE)


def _say(text: str, *arguments: object) -> None:
    with suppress(Exception):  # a log handler that raises must stop neither the caller nor the delivery
        _report.warning(text, *arguments)


class Availability:
    """Availability of one store."""

    def __init__(self, uri: str, timeout: float) -> None:
        """Track the store at `uri`; a check takes at most `timeout` seconds, and only servers are checked."""
        self.uri = uri
        self.is_remote = server_probe.is_server(uri)
        self._timeout = timeout
        self.after_fork()
        self._answered = time.monotonic()
        self._cut: float | None = None
        self._asked = 0.0
        self._fault = ""

    def after_fork(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._lock = threading.RLock()  # reentrant: a signal handler may log while the lock is held

    @property
    def is_cut(self) -> bool:
        """Whether the last attempt to reach the store has failed."""
        return self._cut is not None

    def answered(self, waiting: str = "") -> None:
        """Record that the store answered; if it was unreachable, report that, with `waiting` at the end of the text."""
        with self._lock:
            cut, self._cut = self._cut, None
            self._answered = time.monotonic()
        if cut is not None:
            seconds = time.monotonic() - cut
            _say("the MLflow store at %s answers again after %.0f s%s", mask_url(self.uri), seconds, waiting)

    def failed(self, reason: str) -> None:
        """Record that the store did not answer, and warn if it answered before."""
        self._fault = reason
        with self._lock:
            is_first = self._cut is None
            if is_first:
                self._cut = time.monotonic()
        if is_first:
            _say(
                "the MLflow store at %s %s: %s. The job continues; its data waits in the journal",
                mask_url(self.uri),
                "accepts no data" if reason.startswith("it answers") else "cannot be reached",
                mask(reason).partition("\n")[0].rstrip(". "),
            )

    def require(self) -> None:
        """Check that the store can be used now.

        Raises:
            StoreUnavailableError: the store does not answer within the timeout; MLflow itself would retry for four
                minutes.

        """
        if not self.is_remote:
            return
        now = time.monotonic()
        # If the server answered a moment ago, a connection is proof enough, at 1 % of the cost of a request.
        if (
            not self.is_cut
            and now - self._answered < _FRESH
            and server_probe.takes_connections(self.uri, self._timeout)
        ):
            return
        if self.is_cut and now - self._asked < _FRESH:
            self.refuse()
        self._check()
        self.answered()

    def refuse(self) -> NoReturn:
        """Raise an error with the last fault."""
        raise StoreUnavailableError(server_probe.unavailable(self.uri, self._fault))

    def answers(self) -> bool:
        """Probe the store now, and return whether it answers."""
        try:
            self._check()
        except StoreUnavailableError:
            return False
        return True

    def _check(self) -> None:
        fault = server_probe.find_fault(self.uri, self._timeout)
        if fault is not None:
            self._asked = time.monotonic()
            self.failed(fault)
            self.refuse()
        with self._lock:
            self._answered = time.monotonic()
