"""Sums of tokens and cost over the traces that this process records in each run, logged as metrics at the run's end.

They are counted here, because the store may be unreachable at that moment. `stored_sums` has the sums of a run whose
process was killed.
"""

from __future__ import annotations

import importlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mlflow.entities import TraceInfo

from autogen_team._process.forking import ForkSafeLock, call_in_child
from autogen_team._redact import mask
from autogen_team._ship import stored_sums, trace_entries
from autogen_team._ship.error_text import with_kind
from autogen_team._ship.stored_sums import numbers

Log: TypeAlias = Callable[[dict[str, float]], object]
"""Logs metrics to a run."""

_SPAN_USAGE, _SPAN_COST = "mlflow.chat.tokenUsage", "mlflow.llm.cost"
_MODEL, _PROVIDER = "mlflow.llm.model", "mlflow.llm.provider"
_MOST_OPEN = 10_000
"""Most open traces that are remembered; the spans of older ones are forgotten, and their cost is not summed."""
_MOST_ENDED = 1000
"""Most ended runs that are remembered, in case MLflow exports traces of theirs later."""
_PRICED = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


@dataclass(slots=True)
class _Charge:
    """The cost of a model call, or the facts to compute it from."""

    cost: float | None
    model: str = ""
    provider: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Sums:
    """Sums of one run."""

    count: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    cost: float | None = None
    unpriced: dict[tuple[str, str | None], dict[str, int]] = field(default_factory=dict)
    """Tokens by model and provider, for calls without a cost."""

    def as_metrics(self) -> dict[str, float]:
        """Return the sums as metrics; empty without traces."""
        cost = self.cost
        for (model, provider), tokens in self.unpriced.items():
            priced = _price(model, tokens, provider)
            cost = cost if priced is None else (cost or 0.0) + priced
        return stored_sums.as_metrics(self.count, self.tokens, cost) if self.count else {}


@dataclass(slots=True)
class _Ended:
    """A run that has ended, and the number of traces in the sums that were logged."""

    log: Log
    count: int = 0


_report = logging.getLogger("autogen_team")
_lock = ForkSafeLock()
_runs: dict[str, _Sums] = {}
_ended: OrderedDict[str, _Ended] = OrderedDict()
_open: OrderedDict[str, dict[str, tuple[str | None, _Charge | None]]] = OrderedDict()
"""Parent and charge of each span in open traces, by trace id and span id."""


def note_spans(spans: Sequence[Mapping[str, Any]]) -> None:
    """Record the cost of spans, which have the form that MLflow's `Span.to_dict` returns."""
    with _lock:
        for span in spans:
            of_trace = _open.setdefault(span["trace_id"], {})
            of_trace[span["span_id"]] = span.get("parent_span_id"), _charge(span["attributes"])
        while len(_open) > _MOST_OPEN:
            _open.popitem(last=False)


def note_trace(info: TraceInfo) -> None:
    """Add a trace that has ended to the sums of its run."""
    with _lock:
        spans = _open.pop(trace_entries.id_of_spans(info.trace_id), {})
        run_id = info.trace_metadata.get(stored_sums.RUN)
        if not run_id:
            return
        sums = _runs.setdefault(run_id, _Sums())
        sums.count += 1
        stored_sums.add_tokens(sums.tokens, info.trace_metadata)
        cost = stored_sums.cost_of(info.trace_metadata)
        charges = [_Charge(cost)] if cost is not None else _topmost(spans)
        for charge in charges:
            if charge.cost is not None:
                sums.cost = (sums.cost or 0.0) + charge.cost
                continue
            tokens = sums.unpriced.setdefault((charge.model, charge.provider), {})
            for name in _PRICED:
                if name in charge.usage:
                    tokens[name] = tokens.get(name, 0) + int(charge.usage[name])


def end_run(run_id: str, log: Log) -> None:
    """Log the sums of a run that ends; `log_late` logs them again if more of its traces have been exported by then."""
    with _lock:
        ended = _ended[run_id] = _Ended(log)
        while len(_ended) > _MOST_ENDED:
            _runs.pop(_ended.popitem(last=False)[0], None)
    _log(run_id, ended)


class Earlier:
    """The traces of resumed runs that earlier processes have recorded."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        """When this process resumed each run, in milliseconds since 1970."""

    def resumed(self, run_id: str) -> None:
        """Note that this process resumes a run, unless it has recorded traces in it already."""
        if run_id not in _runs:
            self._since.setdefault(run_id, int(time.time() * 1000))

    def __contains__(self, run_id: str) -> bool:
        """Return whether this process has resumed a run."""
        return run_id in self._since

    def add(self, sums: dict[str, float], run_id: str, store: Any, experiment_id: str, stored_id: str) -> None:
        """Add the sums of the earlier traces of a resumed run, which the store has under `stored_id`.

        Raises:
            Exception: any error of the store.

        """
        found = stored_sums.of_run(store, experiment_id, stored_id, before=self._since[run_id])
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value


def log_late() -> None:
    """Log the sums of the ended runs again that have more traces since; a later value replaces an earlier one."""
    for run_id, ended in list(_ended.items()):
        _log(run_id, ended)


def _log(run_id: str, ended: _Ended) -> None:
    with _lock:
        sums = _runs.get(run_id)
        if sums is None or sums.count == ended.count:
            return
        found, ended.count = sums.as_metrics(), sums.count
    try:
        ended.log(found)
    except Exception as error:  # the end of the run matters more
        _report.warning("the sums of the traces of run %s are not logged: %s", run_id, mask(with_kind(error)))


def _topmost(spans: Mapping[str, tuple[str | None, _Charge | None]]) -> list[_Charge]:
    """Return the charges of spans without a charged ancestor, whose charge includes theirs."""
    found = []
    for parent, charge in spans.values():
        if charge is None:
            continue
        above = spans.get(parent or "")
        while above is not None and above[1] is None:
            above = spans.get(above[0] or "")
        if above is None:
            found.append(charge)
    return found


def _charge(attributes: Mapping[str, Any]) -> _Charge | None:
    cost = numbers(attributes.get(_SPAN_COST)).get("total_cost")
    if cost is not None:
        return _Charge(cost)
    usage = numbers(attributes.get(_SPAN_USAGE))
    model, provider = _text(attributes.get(_MODEL)), _text(attributes.get(_PROVIDER))
    return _Charge(None, model, provider, usage) if usage and model is not None else None


def _text(encoded: Any) -> str | None:
    with suppress(TypeError, ValueError):
        found = json.loads(encoded)
        return found if isinstance(found, str) else None
    return None


def _price(model: str, tokens: Mapping[str, int], provider: str | None) -> float | None:
    """Return the price of tokens in USD from MLflow's price list, as its stores do; None for an unknown model."""
    with suppress(Exception):
        utils = importlib.import_module("mlflow.tracing.utils")
        find: Callable[..., Mapping[str, float] | None] = utils.calculate_cost_by_model_and_token_usage
        found = find(model, dict(tokens), provider)
        return None if found is None else found["total_cost"]
    return None


def forget() -> None:
    """Forget all traces, which belong to the parent in a forked child."""
    _runs.clear()
    _ended.clear()
    _open.clear()


call_in_child(forget)
