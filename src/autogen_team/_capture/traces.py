"""Masks secrets in traces on their way to a store, and keeps an unreachable store from blocking the process.

Every trace passes the methods of MLflow's tracing client that are tapped here: spans of `mlflow.start_span`, of
autologging and of OpenTelemetry's own instrumentation, traces copied in by hand, and tags set later. MLflow documents
another hook, `mlflow.tracing.configure(span_processors=...)`, which this module leaves to the job. Each call of it
replaces the processors of the call before. It sees neither events nor tags. A span that a library opens through
OpenTelemetry does not pass it.

Masking happens where traces are exported, in MLflow's background threads, so the job's own thread pays only with its
share of the interpreter. A chat span with 2 kB of inputs and outputs takes 160 microseconds there, 200 if a header is
masked (medians of 2000 on one of two busy cores, Python 3.11, MLflow 3.17.2). SQLite takes 35 ms to store it. An object
without a secret is passed on itself, not as a copy.
"""

from __future__ import annotations

import contextvars
import copy
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any

from mlflow.entities import Span, TraceData, TraceInfo

from autogen_team._capture import mlflow_internals, redact_entities
from autogen_team._capture.redact_traces import Masker
from autogen_team._process import Undo, activity, grace
from autogen_team._process.forking import ForkSafeLock
from autogen_team._process.threads import spawn
from autogen_team._redact import mask, mask_url

WITHHELD = "[withheld: it could not be searched for secrets]"
_GRACE = 5.0
"""Seconds that MLflow's threads have to let go of calls that were given up."""
_HARMLESS = ("mlflow.trace_schema.version", "mlflow.sourceRun", "mlflow.modelId", "mlflow.trace.sizeStats")
_OF_ANY_SPAN = ("mlflow.traceRequestId", "mlflow.spanType")

_report = logging.getLogger("autogen_team")
_lock = ForkSafeLock()
_door: Door | None = None


def start(*, masked: bool, flush_timeout: float) -> Undo:
    """Tap the traces; the returned function waits for those under way, and removes the taps.

    It waits at most `flush_timeout` seconds. Traces that a server has not taken by then are given up, counted, and
    reported in one warning. Several callers share the taps, and the last one to leave removes them. If one of them
    wants masking, all traces are masked.
    """
    global _door
    with _lock:
        if _door is None:
            _door = Door()
        door = _door
        door.users += 1
        door.masking += masked

    def leave() -> None:
        global _door
        with _lock:
            door.users -= 1
            if door.users:
                door.masking -= masked
                return
        if door.finish(grace.bounded(flush_timeout)):
            with _lock:
                if not door.users:
                    door.undo()
                    _door = None

    return leave


class _GivenUpError(Exception):
    """The wait for the store has been given up."""


class Door:
    """The taps between MLflow and its stores, for traces."""

    def __init__(self) -> None:
        self.users = 0
        self.masking = 0
        """How many of the users want masking."""
        self.lost = 0
        self._uri = ""
        self._is_closed = False
        self._has_failed = False
        self._under_way: set[Future[Any]] = set()
        self.undo = mlflow_internals.tap_traces(
            {
                "start_trace": self._start_trace,
                "log_spans": self._log_spans,
                "set_trace_tag": self._set_trace_tag,
                "_upload_trace_data": self._upload_trace_data,
                "_upload_attachments": partial(self._send, None),
                "link_prompt_versions_to_trace": partial(self._send, None),
            }
        )

    def finish(self, timeout: float) -> bool:
        """Wait for the calls under way, then give up the rest; return whether nothing is left."""
        flushing = spawn(mlflow_internals.wait_for_traces, name="autogen-team-traces")
        if flushing is None:
            mlflow_internals.wait_for_traces()
        else:
            flushing.join(min(timeout, threading.TIMEOUT_MAX))
        if flushing is not None and flushing.is_alive():
            self._give_up()
            flushing.join(_GRACE)
        if self.lost:
            text = "%d traces are lost: the MLflow store at %s did not take them"
            _report.warning(text, self.lost, mask_url(self._uri))
            self.lost = 0
        self._is_closed = False
        # If MLflow's threads are still at work, the taps stay, so that their traces are masked too.
        return flushing is None or not flushing.is_alive()

    def _give_up(self) -> None:
        self._is_closed = True
        for waiting in list(self._under_way):
            with suppress(InvalidStateError):
                waiting.set_exception(_GivenUpError())

    # The methods of MLflow's client

    def _start_trace(self, client: Any, send: Callable[..., Any], trace_info: TraceInfo) -> Any:
        if self.masking:
            trace_info = self._safely(_masked_info, trace_info, _bare_info)
        self._uri = client.tracking_uri
        given_up = mlflow_internals.as_stored(trace_info)
        try:
            found = self._send(given_up, client, send, trace_info)
        except Exception:
            self.lost += 1
            raise
        self.lost += found is given_up
        return found

    def _log_spans(self, client: Any, send: Callable[..., Any], location: str, spans: list[Span]) -> Any:
        if self.masking:
            spans = self._masked_spans(spans)
        return self._send(spans, client, send, location, spans)

    def _upload_trace_data(
        self, client: Any, send: Callable[..., Any], trace_info: TraceInfo, trace_data: TraceData
    ) -> Any:
        if self.masking:
            trace_data = TraceData(spans=self._masked_spans(trace_data.spans))
        return self._send(None, client, send, trace_info, trace_data)

    def _set_trace_tag(self, client: Any, send: Callable[..., Any], trace_id: str, key: str, value: Any) -> Any:
        if self.masking:
            value = self._safely(partial(_masked_tag, key), value, lambda _: WITHHELD)
        return send(client, trace_id, key, value)  # the job waits for this call, and gets its errors

    # Helpers

    def _masked_spans(self, spans: list[Span]) -> list[Span]:
        found = [self._safely(_masked_span, span, _bare_span) for span in spans]
        return [span for span in found if span is not None]

    def _safely(self, masked: Callable[[Any], Any], item: Any, bare: Callable[[Any], Any]) -> Any:
        """Return the item masked; if that fails, the item without content; if that fails too, None."""
        try:
            return masked(item)
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                text = "what a trace holds could not be searched for secrets, and is withheld: %s: %s"
                _report.warning(text, type(error).__name__, mask(str(error)))
        try:
            return bare(item)
        except Exception:
            return None

    def _send(self, instead: Any, client: Any, send: Callable[..., Any], *arguments: Any, **fields: Any) -> Any:
        """Call MLflow's own method; return `instead` if the wait for the store has been given up."""
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
        except _GivenUpError:
            return instead
        finally:
            self._under_way.discard(waiting)


def _fill(waiting: Future[Any], work: Callable[[], Any]) -> None:
    try:
        result = work()
    except BaseException as error:
        with suppress(InvalidStateError):
            waiting.set_exception(error)
    else:
        with suppress(InvalidStateError):
            waiting.set_result(result)


def _masked_span(span: Span) -> Span:
    before = span.to_dict()
    after = Masker(os.environ).span(before)
    return span if after is before else mlflow_internals.span_of(after, like=span)


def _bare_span(span: Span) -> Span:
    """Return the span without anything that the job has put into it."""
    found = span.to_dict()
    kept = {name: found["attributes"][name] for name in _OF_ANY_SPAN if name in found["attributes"]}
    hidden = dict.fromkeys(("mlflow.spanInputs", "mlflow.spanOutputs"), f'"{WITHHELD}"')
    status = {**found["status"], "message": ""}
    bare = {**found, "name": WITHHELD, "attributes": {**kept, **hidden}, "events": [], "status": status, "links": []}
    return mlflow_internals.span_of(bare, like=span)


def _masked_info(info: TraceInfo) -> TraceInfo:
    masker = Masker(os.environ)
    found = copy.copy(info)
    found.tags = {key: masker.tag(key, value) for key, value in info.tags.items()}
    found.trace_metadata = {key: masker.tag(key, value) for key, value in info.trace_metadata.items()}
    if getattr(info, "assessments", None):
        found.assessments = redact_entities.value(info.assessments)
    for name in ("request_preview", "response_preview", "client_request_id"):
        value = getattr(info, name)
        setattr(found, name, masker.excerpt(value) if isinstance(value, str) else value)
    return info if found == info else found


def _bare_info(info: TraceInfo) -> TraceInfo:
    found = copy.copy(info)
    found.tags = {}
    found.trace_metadata = {key: info.trace_metadata[key] for key in _HARMLESS if key in info.trace_metadata}
    found.request_preview = found.response_preview = WITHHELD
    found.client_request_id = None
    if hasattr(info, "assessments"):
        found.assessments = []
    return found


def _masked_tag(key: str, value: Any) -> Any:
    return Masker(os.environ).tag(key, value)
