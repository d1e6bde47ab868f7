"""Masks traces on their way to a store, and sends them through the journal.

Every trace passes the methods of MLflow's tracing client that are tapped here: spans of `mlflow.start_span`, of
autologging and of OpenTelemetry's own instrumentation, traces copied in by hand, and tags set later. MLflow documents
another hook, `mlflow.tracing.configure(span_processors=...)`, which this module leaves to the job. Each call replaces
the processors of the previous call. The hook sees neither events nor tags, and no spans that a library opens through
OpenTelemetry.

MLflow calls these methods in its own thread, soon after a span has ended. Masking happens there, so it costs the job's
thread only a share of the interpreter. Masking and journalling before the span ends would cost the job's thread more
than MLflow itself does (see `benchmarks/bench_traces.py`).
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from mlflow.entities import Span, TraceData, TraceInfo

from autogen_team._capture import (
    direct_traces,
    mlflow_internals,
    redact_entities,
    trace_content,
    trace_sums,
    write_behind,
)
from autogen_team._capture.redact_traces import Masker
from autogen_team._capture.trace_journal import TraceJournal, takes_spans
from autogen_team._process import Undo, grace
from autogen_team._process.deadline import within
from autogen_team._process.forking import ForkSafeLock
from autogen_team._redact import mask
from autogen_team._ship.collector import Outbox

Masking: TypeAlias = Literal["off", "secrets", "content"]
"""What is masked in traces: nothing, secrets, or all content."""

WITHHELD = "[withheld: it could not be searched for secrets]"
_HARMLESS = ("mlflow.trace_schema.version", "mlflow.sourceRun", "mlflow.modelId", "mlflow.trace.sizeStats")
_OF_ANY_SPAN = ("mlflow.traceRequestId", "mlflow.spanType")
_DATABRICKS = "databricks"
_TRACES_PATIENCE = 5.0
"""Seconds that MLflow's threads have to export ended spans."""
_LATE = 5.0
"""Seconds that logging the sums of traces exported after the end of their run may take."""

_report = logging.getLogger("autogen_team")
_lock = ForkSafeLock()
_taps: Taps | None = None


def start(masking: Masking, *, flush_timeout: float, outbox: Outbox | None = None) -> Undo:
    """Tap the traces; the returned function waits until they are in the journal, and removes the taps.

    It waits at most `flush_timeout` seconds. Traces that a store without a journal has not accepted by then are
    dropped, counted, and reported in one warning.

    Several callers share the taps, and the last one to leave removes them. The strictest masking of all callers applies
    to all traces. Spans are also sent to the `outbox` of one caller, the latest that has one.
    """
    global _taps
    with _lock:
        if _taps is None:
            _taps = Taps()
        taps = _taps
        taps.users.append(masking)
        if outbox is not None:
            taps.outboxes.append(outbox)

    def leave() -> None:
        global _taps
        if outbox is not None:
            mlflow_internals.wait_for_traces_within(grace.bounded(flush_timeout))
            taps.outboxes.remove(outbox)
            outbox.finish()
        with _lock:
            taps.last = taps.masking
            taps.users.remove(masking)
            is_last = not taps.users
        if not is_last:
            mlflow_internals.wait_for_traces_within(grace.bounded(min(flush_timeout, _TRACES_PATIENCE)))
        is_settled = is_last and taps.direct.finish(grace.bounded(flush_timeout))
        _log_late_sums()
        if is_settled:
            with _lock:
                if not taps.users:
                    taps.undo()
                    _taps = None

    return leave


def _log_late_sums() -> None:
    try:
        within(_LATE, trace_sums.log_late, name="autogen-team-traces")
    except TimeoutError:
        _report.warning("sums of traces are not logged: the MLflow store does not answer")


@dataclass(slots=True)
class _Masked:
    """A span without secrets."""

    data: dict[str, Any]
    """The masked span in the form that `Span.to_dict` returns."""
    of: Span
    is_unchanged: bool = False

    def as_span(self) -> Span:
        """Return the masked span as an MLflow span."""
        return self.of if self.is_unchanged else mlflow_internals.span_of(self.data, like=self.of)


class Taps:
    """The taps between MLflow and its stores, for traces."""

    def __init__(self) -> None:
        self.users: list[Masking] = []
        """The masking that each user has chosen."""
        self.last: Masking = "off"
        """The masking for traces that are still being exported after the last user has left."""
        self.outboxes: list[Outbox] = []
        """Outboxes of the users; spans go to the latest one, besides the store."""
        self.direct = direct_traces.DirectTraces()
        self._has_failed = False
        self.undo = mlflow_internals.tap_traces(
            {
                "start_trace": self._start_trace,
                "log_spans": self._log_spans,
                "set_trace_tag": self._set_trace_tag,
                "get_trace": _after_export,
                "get_trace_info": _after_export,
                "_upload_trace_data": self._upload_trace_data,
                "_upload_attachments": self._upload_attachments,
                "link_prompt_versions_to_trace": self._link_prompts,
            }
        )

    @property
    def masking(self) -> Masking:
        """The strictest masking of all users."""
        users = self.users or [self.last]
        return "content" if "content" in users else "secrets" if "secrets" in users else "off"

    # The methods of MLflow's client

    def _start_trace(self, client: Any, send: Callable[..., Any], trace_info: TraceInfo) -> Any:
        trace_sums.note_trace(trace_info)
        if self.masking != "off":
            trace_info = self._safely(self._masked_info, trace_info, _bare_info)
        journal = _journal_of(client)
        if journal is None or not trace_info.experiment_id:
            return self.direct.start_trace(client, send, trace_info)
        if journal.takes_spans:  # so a reader does not look for a file before they are delivered
            trace_info = mlflow_internals.as_stored(trace_info)
        journal.log_trace(trace_info)
        return trace_info

    def _log_spans(self, client: Any, send: Callable[..., Any], location: str, spans: list[Span]) -> Any:
        masked = self._masked_spans(spans)
        trace_sums.note_spans([one.data for one in masked])
        journal = _journal_of(client)
        if takes_spans(client.store):
            self._send_to_collector(masked)
        if journal is None:
            sent = [one.as_span() for one in masked]
            return self.direct.send(sent, client, send, location, sent)
        if not journal.takes_spans:
            # As MLflow's own store of this kind does; its exporter then uploads the spans as a file.
            raise NotImplementedError("this store keeps the spans of a trace as a file")
        resource = mlflow_internals.resource_of(spans[0]) if spans else None
        journal.log_spans(location, [one.data for one in masked], resource)
        return spans

    def _upload_trace_data(
        self, client: Any, send: Callable[..., Any], trace_info: TraceInfo, trace_data: TraceData
    ) -> Any:
        masked = self._masked_spans(trace_data.spans)
        if not takes_spans(client.store):
            self._send_to_collector(masked)
        journal = _journal_of(client)
        if journal is None or not trace_info.experiment_id:
            data = TraceData(spans=[one.as_span() for one in masked])
            return self.direct.send(None, client, send, trace_info, data)
        return journal.keep_spans(trace_info.trace_id, [one.data for one in masked])

    def _upload_attachments(
        self, client: Any, send: Callable[..., Any], trace_info: TraceInfo, attachments: dict[str, Any]
    ) -> Any:
        if self.masking == "content":
            return None
        journal = _journal_of(client)
        if journal is None or not trace_info.experiment_id:
            return self.direct.send(None, client, send, trace_info, attachments)
        for name, attachment in attachments.items():
            journal.keep_file(trace_info.trace_id, name, attachment.content_bytes)
        return None

    def _link_prompts(self, client: Any, send: Callable[..., Any], trace_id: str, prompts: Any) -> Any:
        journal = _journal_of(client)
        if journal is not None and journal.link_prompts(trace_id, prompts):
            return None
        return self.direct.send(None, client, send, trace_id, prompts)

    def _set_trace_tag(self, client: Any, send: Callable[..., Any], trace_id: str, key: str, value: Any) -> Any:
        if self.masking != "off":
            value = self._safely(partial(_masked_tag, key), value, lambda _: WITHHELD)
        return send(client, trace_id, key, value)  # the job waits for this call and gets its errors

    # Helpers

    def _send_to_collector(self, spans: list[_Masked]) -> None:
        for outbox in self.outboxes[-1:]:
            for one in spans:
                outbox.put(one.as_span())

    def _masked_spans(self, spans: list[Span]) -> list[_Masked]:
        if self.masking == "off":
            return [_Masked(span.to_dict(), span, is_unchanged=True) for span in spans]
        found = [self._safely(self._masked_span, span, _bare_span) for span in spans]
        return [one for one in found if one is not None]

    def _safely(self, masked: Callable[[Any], Any], item: Any, bare: Callable[[Any], Any]) -> Any:
        """Return the item masked; if that fails, the item without content; if that fails too, None."""
        try:
            return masked(item)
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                text = "the content of a trace could not be searched for secrets and is withheld: %s: %s"
                _report.warning(text, type(error).__name__, mask(str(error)))
        try:
            return bare(item)
        except Exception:
            return None

    def _masked_span(self, span: Span) -> _Masked:
        before = found = span.to_dict()
        if self.masking == "content":
            found = trace_content.of_span(found)
        after = Masker(os.environ).span(found)
        return _Masked(after, span, is_unchanged=after is before)

    def _masked_info(self, info: TraceInfo) -> TraceInfo:
        return _masked_info(trace_content.of_info(info) if self.masking == "content" else info)


def _after_export(client: Any, send: Callable[..., Any], *arguments: Any, **fields: Any) -> Any:
    """Read a trace after MLflow's threads have exported it, because before that it lacks its spans."""
    mlflow_internals.wait_for_traces_within(_TRACES_PATIENCE)
    return send(client, *arguments, **fields)


def _journal_of(client: Any) -> TraceJournal | None:
    """Return the journal for the traces of an MLflow client; None if its store has none."""
    uri: str = client.tracking_uri
    found = None if uri.startswith(_DATABRICKS) else write_behind.of(uri)
    return None if found is None else found.store.traces


def _bare_span(span: Span) -> _Masked:
    """Return the span without any content from the job."""
    found = span.to_dict()
    kept = {name: found["attributes"][name] for name in _OF_ANY_SPAN if name in found["attributes"]}
    hidden = dict.fromkeys(("mlflow.spanInputs", "mlflow.spanOutputs"), f'"{WITHHELD}"')
    status = {**found["status"], "message": ""}
    bare = {**found, "name": WITHHELD, "attributes": {**kept, **hidden}, "events": [], "status": status, "links": []}
    return _Masked(bare, span)


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
