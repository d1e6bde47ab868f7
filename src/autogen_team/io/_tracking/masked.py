"""Parameters, tags and names of runs without secrets, also where nothing goes through a journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlflow.entities import Metric, Param, RunTag

from autogen_team.io import _job
from autogen_team.io._redact import mask
from autogen_team.io._tracking import seam
from autogen_team.io._tracking.standin import StandIn


def masked(item: Any) -> Any:
    """Return a parameter or tag without secrets: the same object, if it holds none."""
    value = mask(item.value) if isinstance(item.value, str) else item.value
    return item if value == item.value else type(item)(item.key, value)


def masked_name(name: str | None) -> str | None:
    """Return the name of a run without secrets."""
    return None if name is None else mask(name)


def start(uri: str) -> _job.Undo:
    """Let nothing go to the store of `uri` unmasked, journal or not; the returned function undoes that."""
    return seam.stand_in(uri, MaskingStore(seam.plain_store(uri)), yields=True)


class MaskingStore(StandIn):
    """Stands in for a store, and hands it each call at once, without secrets."""

    def log_param(self, run_id: str, param: Param) -> None:
        """Log a parameter."""
        self._inner.log_param(run_id, masked(param))

    def log_param_async(self, run_id: str, param: Param) -> Any:
        """Log a parameter, later."""
        return self._inner.log_param_async(run_id, masked(param))

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        """Set a tag."""
        self._inner.set_tag(run_id, masked(tag))

    def set_tag_async(self, run_id: str, tag: RunTag) -> Any:
        """Set a tag, later."""
        return self._inner.set_tag_async(run_id, masked(tag))

    def log_batch(
        self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
    ) -> None:
        """Log all of it."""
        self._inner.log_batch(run_id, metrics, [*map(masked, params)], [*map(masked, tags)])

    def log_batch_async(
        self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
    ) -> Any:
        """Log all of it, later."""
        return self._inner.log_batch_async(run_id, metrics, [*map(masked, params)], [*map(masked, tags)])

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int, tags: Sequence[RunTag], run_name: str | None
    ) -> Any:
        """Make a run; MLflow has put its name among the tags too, and refuses two names."""
        return self._inner.create_run(experiment_id, user_id, start_time, [*map(masked, tags)], masked_name(run_name))

    def update_run_info(self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None) -> Any:
        """Change status, end and name."""
        return self._inner.update_run_info(run_id, run_status, end_time, masked_name(run_name))
