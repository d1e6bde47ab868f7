"""Whether the store answers: one warning when it stops, one when it is back, and no long waits in between."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import NoReturn

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from autogen_team.errors import TrackingUnavailableError
from autogen_team.io._redact import mask, mask_url
from autogen_team.io._tracking import probe

_FRESH = 1.0
"""Seconds for which an answer counts, or that there was none."""

_report = logging.getLogger("autogen_team")


class StoreUnavailableError(MlflowException, TrackingUnavailableError):
    """The store does not answer; what waits for MLflow's own errors catches it too."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=TEMPORARILY_UNAVAILABLE)


def _say(text: str, *arguments: object) -> None:
    with suppress(Exception):  # a log handler that raises is no reason to fail, or not to deliver
        _report.warning(text, *arguments)


class Link:
    """The way to one store."""

    def __init__(self, uri: str, timeout: float) -> None:
        """Ask the server at `uri` with `timeout` seconds of patience; what is not a server is never asked."""
        self.uri = uri
        self.is_remote = probe.is_server(uri)
        self._timeout = timeout
        self.after_fork()
        self._answered = time.monotonic()
        self._cut: float | None = None
        self._asked = 0.0
        self._fault = ""

    def after_fork(self) -> None:
        """Make a lock that nobody holds."""
        self._lock = threading.RLock()  # a signal handler may log in the midst of this

    @property
    def is_cut(self) -> bool:
        """Whether the last attempt has failed."""
        return self._cut is not None

    def answered(self, waiting: str = "") -> None:
        """Note that the store has answered; `waiting` says what can be delivered now."""
        with self._lock:
            cut, self._cut = self._cut, None
            self._answered = time.monotonic()
        if cut is not None:
            seconds = time.monotonic() - cut
            _say("the MLflow store at %s answers again after %.0f s%s", mask_url(self.uri), seconds, waiting)

    def failed(self, reason: str) -> None:
        """Note that the store has not answered, and warn if it did before."""
        self._fault = reason
        with self._lock:
            is_first = self._cut is None
            if is_first:
                self._cut = time.monotonic()
        if is_first:
            _say(
                "the MLflow store at %s %s: %s. The job goes on; what it logs waits in the journal",
                mask_url(self.uri),
                "takes nothing" if reason.startswith("it answers") else "cannot be reached",
                mask(reason).partition("\n")[0].rstrip(". "),
            )

    def require(self) -> None:
        """Return if the store can be asked now.

        Raises:
            StoreUnavailableError: it does not answer within the timeout; MLflow would find that out in four minutes.

        """
        if not self.is_remote:
            return
        now = time.monotonic()
        # Who has answered a moment ago is there if it still takes connections, which costs a hundredth of a question.
        if not self.is_cut and now - self._answered < _FRESH and probe.takes_connections(self.uri, self._timeout):
            return
        if self.is_cut and now - self._asked < _FRESH:
            self.refuse()
        self._check()
        self.answered()

    def refuse(self) -> NoReturn:
        """Raise for what was found out last."""
        raise StoreUnavailableError(probe.unavailable(self.uri, self._fault))

    def answers(self) -> bool:
        """Ask the store now, and tell whether it answers."""
        try:
            self._check()
        except StoreUnavailableError:
            return False
        return True

    def _check(self) -> None:
        fault = probe.find_fault(self.uri, self._timeout)
        if fault is not None:
            self._asked = time.monotonic()
            self.failed(fault)
            self.refuse()
        with self._lock:
            self._answered = time.monotonic()
