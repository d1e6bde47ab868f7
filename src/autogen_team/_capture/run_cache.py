"""Cache of the runs that a process logs to, so that it does not ask their store on each call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow.entities import LifecycleStage, Metric, Param, Run, RunData, RunInfo, RunTag

PENDING = "pending:/"
"""Prefix of a run's artifact URI, followed by the run's id, until the store has created the run."""


class CachedRun:
    """One run as the store last returned it, with the data that this process has logged since."""

    __slots__ = ("info", "is_deleted", "params", "tags")

    def __init__(self, run: Run) -> None:
        self.info: RunInfo = run.info
        self.params: dict[str, str] = dict(run.data.params)
        self.tags: dict[str, str] = dict(run.data.tags)
        self.is_deleted = run.info.lifecycle_stage == LifecycleStage.DELETED

    def as_run(self, metrics: Sequence[Metric] = ()) -> Run:
        """Return the run; it has only the given metrics, because only the store knows the latest values."""
        params = [Param(*pair) for pair in self.params.items()]
        return Run(self.info, RunData(list(metrics), params, _tags(self.tags)))


def run_to_be_made(
    run_id: str, experiment_id: str, user_id: str, start_time: int, name: str, tags: Mapping[str, str]
) -> Run:
    """Return a placeholder for a run that its store will create later."""
    place = f"{PENDING}{run_id}"
    info = RunInfo(run_id, experiment_id, user_id, "RUNNING", start_time, None, LifecycleStage.ACTIVE, place, name)
    return Run(info, RunData([], [], _tags(tags)))


def _tags(values: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(*pair) for pair in values.items()]
