"""Writes traces to the journal of a store."""

from __future__ import annotations

import json
import math
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]  # protobuf has no types
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.tracing.constant import TraceTagKey
from mlflow.tracing.utils import generate_assessment_id
from mlflow.tracing.utils.prompt import update_linked_prompts_tag

from autogen_team._process.folders import private_folder
from autogen_team._process.forking import ForkSafeLock
from autogen_team._ship import trace_files
from autogen_team._spool import records
from autogen_team._spool.journal import Journal

if TYPE_CHECKING:
    from mlflow.entities import TraceInfo

_FOLDER = "trace-files"
"""Folder for the files of traces, beside the segments of the journal."""
_MOST_KNOWN = 10_000
"""Most traces that are remembered as journalled; tags of older traces are set in the store."""
_join_prompts: Callable[..., Any] = update_linked_prompts_tag


def takes_spans(store: Any) -> bool:
    """Return whether an MLflow store accepts single spans."""
    return getattr(store.__class__, "log_spans", None) is not AbstractStore.log_spans


class TraceJournal:
    """The traces in the journal of one store."""

    def __init__(self, inner: Any, journal: Journal, write: Callable[[str], None]) -> None:
        """Use `write` to add entries to `journal`; `inner` is MLflow's own store."""
        self._journal = journal
        self._write = write
        self.takes_spans = takes_spans(inner)
        """Whether the store accepts single spans; otherwise it keeps the spans of a trace as a file."""
        self.after_fork()

    def after_fork(self) -> None:
        """Forget the traces of the parent."""
        self._lock = ForkSafeLock()
        self._known: OrderedDict[str, tuple[int, str | None]] = OrderedDict()
        """The number of each trace's entry, and its tag that lists prompts, by trace id."""

    def log_spans(
        self, experiment_id: str, spans: Sequence[Mapping[str, Any]], resource: Mapping[str, Any] | None
    ) -> None:
        """Write spans to the journal."""
        if spans:
            self._put("spans", experiment=experiment_id, spans=spans, resource=resource or None)

    def log_trace(self, info: TraceInfo) -> None:
        """Write the info of a trace that has ended."""
        proto: Any = info.to_proto()
        found = MessageToDict(proto, preserving_proto_field_name=True)
        # the proto has truncated values, which only servers need
        found["trace_metadata"] = {str(key): str(value) for key, value in info.trace_metadata.items()}
        found["tags"] = {str(key): str(value) for key, value in info.tags.items()}
        for assessment in found.get("assessments", ()):  # an id prevents a second copy in the store
            assessment.setdefault("assessment_id", generate_assessment_id())
            assessment.setdefault("trace_id", info.trace_id)
        self._put("trace", info=found)
        with self._lock:
            self._known[info.trace_id] = self._journal.number, info.tags.get(TraceTagKey.LINKED_PROMPTS)
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)

    def tag(self, trace_id: str, key: str, value: str) -> bool:
        """Write a tag of a trace that waits in the journal; return False if the store has the trace."""
        if self._known.get(trace_id, (0, None))[0] <= self._journal.acked:
            return False
        self._put("trace_tag", trace=trace_id, key=key, value=value)
        return True

    def link_prompts(self, trace_id: str, prompts: Sequence[Any]) -> bool:
        """Write links to prompts, and the tag that lists them; return False for a trace that is not remembered."""
        if trace_id not in self._known:
            return False
        with self._lock:
            number, before = self._known[trace_id]
            after = _join_prompts(before, list(prompts))
            self._known[trace_id] = number, after
        named = [{"name": prompt.name, "version": prompt.version} for prompt in prompts]
        self._put("trace_prompts", trace=trace_id, prompts=named)
        if after != before:
            self._put("trace_tag", trace=trace_id, key=TraceTagKey.LINKED_PROMPTS, value=after)
        return True

    def keep_file(self, trace_id: str, name: str, data: bytes) -> None:
        """Write a file of a trace: an attachment, or its spans."""
        place = self._journal.begin() / _FOLDER / uuid.uuid4().hex
        private_folder(place.parent)
        place.write_bytes(data)
        self._put("trace_file", trace=trace_id, name=name, place=f"{_FOLDER}/{place.name}")

    def keep_spans(self, trace_id: str, spans: Sequence[Mapping[str, Any]]) -> None:
        """Write the spans of a trace as the file that MLflow keeps for stores that do not accept spans."""
        data = json.dumps({"spans": list(spans)}, ensure_ascii=False, default=_plain)
        self.keep_file(trace_id, trace_files.SPANS, data.encode("utf-8", "replace"))

    def _put(self, operation: str, **fields: Any) -> None:
        try:
            body = records.body(operation, **fields)
        except TypeError:  # a type that only OpenTelemetry has, or text that is not valid Unicode
            body = records.body(operation, **_plain(fields))
        self._write(body)


def _plain(value: Any) -> Any:
    """Return a value with only JSON's types and valid Unicode."""
    match value:
        case None | bool():
            return value
        case str():
            return value.encode("utf-8", "replace").decode()
        case int():
            return value if -(2**63) <= value < 2**64 else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {_plain(str(key)): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case _:
            return _plain(str(value))
