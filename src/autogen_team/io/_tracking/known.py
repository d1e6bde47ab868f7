"""What a process knows of the runs that it logs to, so that it need not ask their store at each call."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow.entities import LifecycleStage, Param, Run, RunData, RunInfo, RunTag


class Known:
    """One run, as the store had it last, with what was logged here since."""

    __slots__ = ("info", "is_deleted", "params", "tags")

    def __init__(self, run: Run) -> None:
        self.info: RunInfo = run.info
        self.params: dict[str, str] = dict(run.data.params)
        self.tags: dict[str, str] = dict(run.data.tags)
        self.is_deleted = run.info.lifecycle_stage == LifecycleStage.DELETED

    def as_run(self) -> Run:
        """Return the run; its metrics, of which only the store knows the latest, are left out."""
        params = [Param(*pair) for pair in self.params.items()]
        return Run(self.info, RunData([], params, _tags(self.tags)))


def run_to_be_made(
    run_id: str, experiment_id: str, user_id: str, start_time: int, name: str, tags: Mapping[str, str]
) -> Run:
    """Return a run that its store will make later."""
    place = f"pending:/{run_id}"  # no kind of place that MLflow knows, so asking for it fails at once
    info = RunInfo(run_id, experiment_id, user_id, "RUNNING", start_time, None, LifecycleStage.ACTIVE, place, name)
    return Run(info, RunData([], [], _tags(tags)))


def _tags(values: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(*pair) for pair in values.items()]
