"""Results of a copy between stores; this module does not load MLflow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Happened: TypeAlias = Literal["copied", "continued", "unchanged", "would copy", "skipped", "failed"]
Kind: TypeAlias = Literal["model", "prompt"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of the items sent; in a dry run, of the items in the source."""

    metrics: int = 0
    """Number of points, not of names."""
    params: int = 0
    tags: int = 0
    datasets: int = 0
    artifacts: int = 0
    """Number of files, including those of models."""
    models: int = 0
    """Number of models that the run created, even if none of their content was sent."""
    traces: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result for one run; without a `source_id`, for the traces of an experiment outside of runs, or for a fault."""

    experiment: str
    run_name: str
    source_id: str
    target_id: str | None
    """None without a copy."""
    happened: Happened
    counts: Counts = field(default_factory=Counts)
    reason: str | None = None
    """Why the run, or which part of it, was not copied; without secrets."""
    is_deleted: bool = False
    """Whether the run was deleted in the source; only `mlflow gc` removes a deleted run permanently."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of `copy`."""

    done: int
    """Number of runs that are done."""
    total: int
    """Number of runs to copy."""
    run_name: str
    part: str
    """Part of the run that is being sent, such as the path of an artifact; empty when the run begins."""


@dataclass(frozen=True, slots=True)
class Registered:
    """Result for one registered model or prompt."""

    name: str
    kind: Kind
    happened: Happened
    versions: dict[str, str | None] = field(default_factory=dict)
    """The version on the target, by the version in the source; None in a dry run, if it would be added."""
    reason: str | None = None
    """What was not copied, and why; without secrets."""
