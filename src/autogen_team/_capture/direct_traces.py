"""Traces of a store without a journal: MLflow sends them itself, and a silent store does not block the process."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any

from mlflow.entities import TraceInfo

from autogen_team._capture import mlflow_internals
from autogen_team._process import activity
from autogen_team._process.threads import spawn
from autogen_team._redact import mask_url

_GRACE = 5.0
"""Seconds that MLflow's threads have to return from abandoned calls."""

_report = logging.getLogger("autogen_team")


class _AbandonedError(Exception):
    """The wait for the store was abandoned."""


class DirectTraces:
    """Caller of MLflow's own trace methods that can abandon calls to a silent store."""

    def __init__(self) -> None:
        self.lost = 0
        self._uri = ""
        self._is_closed = False
        self._under_way: set[Future[Any]] = set()

    def finish(self, timeout: float) -> bool:
        """Wait for MLflow's threads, then abandon the calls still running; return whether the threads have ended."""
        flushing = spawn(mlflow_internals.wait_for_traces, name="autogen-team-traces")
        if flushing is None:
            mlflow_internals.wait_for_traces()
        else:
            flushing.join(min(timeout, threading.TIMEOUT_MAX))
        if flushing is not None and flushing.is_alive():
            self._abandon()
            flushing.join(_GRACE)
        if self.lost:
            text = "%d traces are lost: the MLflow store at %s did not accept them"
            _report.warning(text, self.lost, mask_url(self._uri))
            self.lost = 0
        self._is_closed = False
        # If MLflow's threads are still working, the taps stay, so that their traces are masked too.
        return flushing is None or not flushing.is_alive()

    def start_trace(self, client: Any, send: Callable[..., Any], trace_info: TraceInfo) -> Any:
        """Send the info of a trace, and count it if it is lost."""
        self._uri = client.tracking_uri
        instead = mlflow_internals.as_stored(trace_info)
        try:
            found = self.send(instead, client, send, trace_info)
        except Exception:
            self.lost += 1
            raise
        self.lost += found is instead
        return found

    def send(self, instead: Any, client: Any, send: Callable[..., Any], *arguments: Any, **fields: Any) -> Any:
        """Call MLflow's own method; return `instead` if the wait for the store was abandoned."""
        activity.note()
        if self._is_closed:
            return instead
        if client.tracking_uri.startswith("sqlite"):
            return send(client, *arguments, **fields)
        # Use a daemon thread: a silent server holds each of MLflow's threads for minutes, and those keep the process
        # alive.
        waiting: Future[Any] = Future()
        work = partial(contextvars.copy_context().run, send, client, *arguments, **fields)
        self._under_way.add(waiting)
        if spawn(partial(_fill, waiting, work), name="autogen-team-trace") is None:
            _fill(waiting, work)
        try:
            return waiting.result()
        except _AbandonedError:
            return instead
        finally:
            self._under_way.discard(waiting)

    def _abandon(self) -> None:
        self._is_closed = True
        for waiting in list(self._under_way):
            with suppress(InvalidStateError):
                waiting.set_exception(_AbandonedError())


def _fill(waiting: Future[Any], work: Callable[[], Any]) -> None:
    try:
        result = work()
    except BaseException as error:
        with suppress(InvalidStateError):
            waiting.set_exception(error)
    else:
        with suppress(InvalidStateError):
            waiting.set_result(result)
