"""Sums of tokens and cost over the traces of a run, by what the store has of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

PREFIX = "trace."
"""Prefix of the metrics."""
RUN, TOKENS, COST = "mlflow.sourceRun", "mlflow.trace.tokenUsage", "mlflow.trace.cost"
"""Metadata of a trace: the run that it was recorded in, and what it took."""
_PAGE = 500
"""Traces in one answer; a server sends no more."""


def of_run(store: Any, experiment_id: str, run_id: str, *, before: float = math.inf) -> dict[str, float]:
    """Return the sums over the ended traces of a run as metrics; empty if the store has none.

    `store` is one of MLflow's own. Traces from `before`, in milliseconds since 1970, or later do not count. Nor
    do traces of other runs that were linked to this one.

    Raises:
        Exception: any error of the store.

    """
    count, tokens = 0, dict[str, int]()
    cost: float | None = None
    token: str | None = None
    while True:
        page, token = store.search_traces(
            locations=[experiment_id],
            filter_string=f"request_metadata.`{RUN}` = '{run_id}'",  # also finds linked traces
            max_results=_PAGE,
            page_token=token,
        )
        for info in page:
            if info.trace_metadata.get(RUN) == run_id and info.request_time < before:
                count += 1
                add_tokens(tokens, info.trace_metadata)
                priced = cost_of(info.trace_metadata)
                cost = cost if priced is None else (cost or 0.0) + priced
        if not token:
            return as_metrics(count, tokens, cost) if count else {}


def as_metrics(count: int, tokens: Mapping[str, int], cost: float | None) -> dict[str, float]:
    """Return sums as metrics; the cost is in USD, and None if it is unknown."""
    found: dict[str, float] = {"count": count, **tokens}
    if cost is not None:
        found["cost"] = cost
    return {PREFIX + name: float(value) for name, value in found.items()}


def add_tokens(sums: dict[str, int], metadata: Mapping[str, str]) -> None:
    """Add the tokens of a trace to sums by kind."""
    for name, value in numbers(metadata.get(TOKENS)).items():
        sums[name] = sums.get(name, 0) + int(value)


def cost_of(metadata: Mapping[str, str]) -> float | None:
    """Return the cost of a trace in USD; None if its metadata does not hold it."""
    return numbers(metadata.get(COST)).get("total_cost")


def numbers(encoded: Any) -> dict[str, Any]:
    """Return the numbers in the text of a JSON object; empty if it is not one."""
    with suppress(TypeError, ValueError):
        found = json.loads(encoded)
        if isinstance(found, dict):
            return {k: v for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {}
