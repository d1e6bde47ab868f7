"""Turn the journal entries of traces into requests, which join many traces, and the spans of many traces."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from autogen_team._spool.records import Entry

OPS = frozenset({"spans", "trace", "trace_tag", "trace_prompts", "trace_file"})
"""Operations on traces; they name no run, because a trace belongs to an experiment."""
_SOURCE_RUN = "mlflow.sourceRun"
_MOST = 500
"""Maximum number of spans in one request."""


def requests(found: Iterable[Entry]) -> Iterator[Entry]:
    """Yield the entries; join entries of traces into one of the operation `traces`, and join entries of spans.

    The traces come first. Otherwise the store creates a trace from the spans, and fails to insert the real one before
    it merges both.
    """
    rest: list[Entry] = []
    joined: dict[str, Entry] = {}
    traces: dict[str, Entry] = {}
    spans: list[Entry] = []
    for entry in found:
        if entry["op"] == "trace":
            again = traces.setdefault(entry["info"]["trace_id"], entry)
            if again is not entry:
                rest.append(entry)
        else:
            (spans if entry["op"] == "spans" else rest).append(entry)
    if traces:
        yield {"op": "traces", "entries": [*traces.values()]}
    for entry in spans:
        key = f"{entry['experiment']} {entry.get('resource')}"
        begun = joined.get(key)
        if begun is None:
            joined[key] = {**entry, "spans": [*entry["spans"]]}
        elif len(begun["spans"]) + len(entry["spans"]) <= _MOST:
            begun["spans"] += entry["spans"]
        else:
            yield joined.pop(key)
            joined[key] = {**entry, "spans": [*entry["spans"]]}
    yield from joined.values()
    yield from rest


def lacks_infos(found: Iterable[Entry]) -> bool:
    """Return whether the entries hold the root span of a trace, but not the info, which MLflow writes after it."""
    ended: set[str] = set()
    for entry in found:
        if entry["op"] == "spans":
            ended |= {span["trace_id"] for span in entry["spans"] if not span.get("parent_span_id")}
        elif entry["op"] == "trace":
            ended.discard(id_of_spans(entry["info"]["trace_id"]))
    return bool(ended)


def id_of_spans(trace_id: str) -> str:
    """Return the id of a trace in the form that its spans hold; empty if it is not an id of MLflow's own."""
    with suppress(ValueError):
        return base64.b64encode(bytes.fromhex(trace_id.removeprefix("tr-"))).decode()
    return ""


def parts(entry: Entry) -> list[Entry]:
    """Split a joined entry into one entry per trace; return an empty list for any other entry."""
    if entry["op"] == "traces":
        return list(entry["entries"])
    if entry["op"] != "spans":
        return []
    found: dict[str, list[Any]] = {}
    for span in entry["spans"]:
        found.setdefault(span["trace_id"], []).append(span)
    return [{**entry, "spans": spans} for spans in found.values()] if len(found) > 1 else []


def portions(spans: Sequence[Mapping[str, Any]], size: int) -> list[list[Mapping[str, Any]]]:
    """Return the spans in portions of at least `size`, except the last one; the spans of a trace stay together."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for span in spans:
        found.setdefault(span["trace_id"], []).append(span)
    made: list[list[Mapping[str, Any]]] = []
    for of_trace in found.values():
        if made and len(made[-1]) < size:
            made[-1] += of_trace
        else:
            made.append([*of_trace])
    return made


def with_real_run(info: Mapping[str, Any], ids: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the info of a trace with the store's id of its run, which may have begun while the store was down."""
    metadata = info.get("trace_metadata", {})
    real = ids.get(metadata.get(_SOURCE_RUN, ""))
    return info if real is None else {**info, "trace_metadata": {**metadata, _SOURCE_RUN: real}}
