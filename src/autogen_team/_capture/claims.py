"""What a later attempt of a job needs to know about the earlier ones: their last steps, and their parameters."""

from __future__ import annotations

import hashlib
from typing import Any

from mlflow.entities import Run

from autogen_team._capture import mlflow_internals
from autogen_team._process.run_events import ATTEMPT_TAG
from autogen_team._ship.owners import latest_claim

_LONGEST_KEY, _LONGEST_TAG = 250, 5000
"""Most characters that every server accepts in the name and in the value of a tag."""


def steps_of(run: Run, before: float | None = None) -> dict[str, Any]:
    """Return the last step of each metric of a run, apart from system metrics.

    With `before`, in milliseconds since 1970, metrics logged at that time or later are left out.
    """
    return {
        metric.key: metric.step
        for metric in mlflow_internals.metrics_of(run)
        if not metric.key.startswith("system/") and (before is None or metric.timestamp < before)
    }


def may_live(run: Run) -> bool:
    """Return whether the process that has claimed the run may be alive; True for any process on another machine."""
    claim = latest_claim(run.data.params)
    return claim is not None and (claim.lives or not claim.is_of_this_machine)


def param_tag(attempt: int, key: str) -> str:
    """Return the name of the tag that keeps the value of a parameter in one attempt.

    >>> param_tag(2, "lr")
    'autogen_team.attempt.2.param.lr'
    """
    name = f"{ATTEMPT_TAG}.{attempt}.param.{key}"
    if len(name) <= _LONGEST_KEY:
        return name
    mark = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[: _LONGEST_KEY - len(mark) - 1]}-{mark}"


def as_tag(value: str) -> str:
    """Return the value of a parameter, cut to the length of a tag."""
    return value[:_LONGEST_TAG]
