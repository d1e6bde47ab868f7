"""Sums of tokens and cost over the traces of each run, logged as metrics of the run at its end."""

from __future__ import annotations

import base64
import importlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import TraceInfo

from autogen_team._process.forking import ForkSafeLock, call_in_child

PREFIX = "trace."
_TOKENS, _COST, _RUN = "mlflow.trace.tokenUsage", "mlflow.trace.cost", "mlflow.sourceRun"
_SPAN_USAGE, _SPAN_COST = "mlflow.chat.tokenUsage", "mlflow.llm.cost"
_MODEL, _PROVIDER = "mlflow.llm.model", "mlflow.llm.provider"
_MOST_OPEN = 10_000
"""Most open traces that are remembered; the spans of older ones are forgotten, and their cost is not summed."""
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


_lock = ForkSafeLock()
_runs: dict[str, _Sums] = {}
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
        spans = _open.pop(_id_of_spans(info.trace_id), {})
        run_id = info.trace_metadata.get(_RUN)
        if not run_id:
            return
        sums = _runs.setdefault(run_id, _Sums())
        sums.count += 1
        for name, value in _numbers(info.trace_metadata.get(_TOKENS)).items():
            sums.tokens[name] = sums.tokens.get(name, 0) + int(value)
        cost = _numbers(info.trace_metadata.get(_COST)).get("total_cost")
        charges = [_Charge(cost)] if cost is not None else _topmost(spans)
        for charge in charges:
            if charge.cost is not None:
                sums.cost = (sums.cost or 0.0) + charge.cost
                continue
            tokens = sums.unpriced.setdefault((charge.model, charge.provider), {})
            for name in _PRICED:
                if name in charge.usage:
                    tokens[name] = tokens.get(name, 0) + int(charge.usage[name])


def pop(run_id: str) -> dict[str, float]:
    """Return the sums of a run as metrics, and forget them; empty if the run has no traces."""
    with _lock:
        sums = _runs.pop(run_id, None)
    if sums is None:
        return {}
    cost = sums.cost
    for (model, provider), tokens in sums.unpriced.items():
        priced = _price(model, tokens, provider)
        cost = cost if priced is None else (cost or 0.0) + priced
    found: dict[str, float] = {"count": sums.count, **sums.tokens}
    if cost is not None:
        found["cost"] = cost
    return {PREFIX + name: float(value) for name, value in found.items()}


def _id_of_spans(trace_id: str) -> str:
    """Return the id of a trace in the form that its spans hold."""
    with suppress(ValueError):
        return base64.b64encode(bytes.fromhex(trace_id.removeprefix("tr-"))).decode()
    return ""


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
    cost = _numbers(attributes.get(_SPAN_COST)).get("total_cost")
    if cost is not None:
        return _Charge(cost)
    usage = _numbers(attributes.get(_SPAN_USAGE))
    model, provider = _text(attributes.get(_MODEL)), _text(attributes.get(_PROVIDER))
    return _Charge(None, model, provider, usage) if usage and model is not None else None


def _numbers(encoded: Any) -> dict[str, Any]:
    with suppress(TypeError, ValueError):
        found = json.loads(encoded)
        if isinstance(found, dict):
            return {k: v for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {}


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


def _forget() -> None:
    _runs.clear()
    _open.clear()


call_in_child(_forget)
