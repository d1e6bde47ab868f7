"""The lines of a journal: one entry a line, each a JSON object with its own checksum.

A line is ``{"crc":"1c291ca3","n":17,"op":"metrics",...}``: the CRC-32 of everything after it up to the end of the line,
the number of the entry, the operation, and its fields. A torn or foreign line fails the check and is skipped. A reader
recognizes a repeated entry by its number. docs/journal.md describes every operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, TypeAlias
from zlib import crc32

import orjson

VERSION = 2
NOTES = frozenset({"journal", "opening", "open", "joined", "created", "closed"})
"""Operations that are never sent to the store; the recovery of a journal needs them."""

Entry: TypeAlias = dict[str, Any]

_START = b'{"crc":"'
_PROVEN_FROM = len(_START) + 8 + 2
_NOT_FINITE = {"nan": '"NaN"', "inf": '"Infinity"', "-inf": '"-Infinity"'}
"""JSON for the numbers that JSON lacks, in the form of protocol buffers, which MLflow's servers use."""


def line(number: int, body: str) -> bytes:
    """Return the line of an entry; `body` is its JSON from `"op"` on, without the opening brace."""
    proven = f'"n":{number},{body}'.encode()
    return b'{"crc":"%08x",%b\n' % (crc32(proven), proven)


def acked_line(number: int) -> bytes:
    """Return the content of `acked`: a line like that of an entry, of fixed length, so that one write replaces it."""
    return line(number, '"op":"acked"}' + " " * (20 - len(str(number))))


def parse(line: bytes) -> Entry | None:
    """Return the entry of a line, which is given without its newline; None if the line is torn or foreign."""
    if not is_whole(line):
        return None
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return entry if isinstance(entry.get("n"), int) and isinstance(entry.get("op"), str) else None


def is_whole(line: bytes) -> bool:
    """Return whether a line, given without its newline, is intact, whatever its content."""
    return line[: len(_START) + 8] == _START + b"%08x" % crc32(line[_PROVEN_FROM:])


def body(op: str, **fields: Any) -> str:
    """Return the body of an entry; fields that are None are left out."""
    found = {"op": op, **{name: value for name, value in fields.items() if value is not None}}
    return orjson.dumps(found).decode()[1:]


def metrics_body(run_id: str, timestamp: float, step: float, pairs: str, more: str = "") -> str:
    """Return the body of an entry for metrics that share run, time (milliseconds since 1970) and step.

    It is called for every metric, so it takes only a tenth of the time of `body`. `pairs` are results of `pair`, joined
    by commas; `more` is the result of `metric_extras`.
    """
    return f'"op":"metrics","run":"{run_id}","t":{timestamp},"step":{step},{more}"values":{{{pairs}}}}}'


def pair(quoted: str, value: float) -> str:
    """Return one metric as a part of a body; `quoted` is its key as returned by `quote`."""
    return quoted + (repr(value) if isfinite(value) else _NOT_FINITE[repr(value)])


def quote(key: str) -> str:
    """Return a key as JSON, with its colon."""
    return orjson.dumps(key).decode() + ":"


def metric_extras(model_id: str | None, dataset_name: str | None, dataset_digest: str | None) -> str:
    """Return the optional fields of metrics as a part of a body; empty if there are none."""
    if model_id is None and dataset_name is None and dataset_digest is None:
        return ""
    extras = {"model": model_id, "dataset": dataset_name, "digest": dataset_digest}
    return orjson.dumps({name: value for name, value in extras.items() if value is not None}).decode()[1:-1] + ","


def values_of(entry: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Return the keys of a metrics entry with their values as floats."""
    return ((key, float(value)) for key, value in entry["values"].items())
