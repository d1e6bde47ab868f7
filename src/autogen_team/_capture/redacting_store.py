"""Replacement stores that redact their arguments, used where there is no journal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mlflow.entities import Metric, RunStatus

from autogen_team._capture import manifest, mlflow_internals, redact_entities, trace_sums
from autogen_team._capture.manifest import Rule
from autogen_team._capture.transparent_proxy import TransparentProxy
from autogen_team._process import Undo
from autogen_team._ship import mlflow_backend

_TRACES_PATIENCE = 5.0
"""Seconds that MLflow's threads have to export ended spans."""

_report = logging.getLogger("autogen_team")
_reported: set[tuple[str, str]] = set()
"""Unlisted methods that the log has reported, as pairs of class name and method name."""


def start(uri: str) -> Undo:
    """Redact calls to the tracking store of `uri` while it has no journal; return a function that stops this."""
    return mlflow_internals.stand_in(uri, Tracking(mlflow_backend.plain_store(uri)), yields=True)


def start_registry(await_files: Callable[[str], None]) -> Undo:
    """Redact calls to all model registries; return a function that stops this.

    `await_files` waits until the files at a URI are uploaded; a model is registered only after that.
    """
    return mlflow_internals.stand_in_registries(partial(Registry, await_files))


class RedactingStore(TransparentProxy):
    """Stand-in for a store that passes each call on at once, with secrets redacted according to a manifest."""

    def __init__(self, inner: Any, rules: Mapping[str, Rule]) -> None:
        super().__init__(inner)
        self._rules = rules

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        rule = self._rule(name)
        if rule is None or not rule.redacts:
            return found

        def call(*arguments: Any, **fields: Any) -> Any:
            given, named = redact_entities.arguments(found, rule.kept, arguments, fields)
            return found(*given, **named)

        return call

    def _rule(self, name: str) -> Rule | None:
        """Return the rule for a method; None for an unlisted private name, and for other attributes."""
        rule = self._rules.get(name)
        if rule is not None or name.startswith("_"):
            return rule
        of_class = type(self._inner)
        if not callable(getattr(of_class, name, None)):
            return None
        if (of_class.__name__, name) not in _reported:
            _reported.add((of_class.__name__, name))
            text = (
                "this version of autogen-team does not know %s.%s of MLflow: secrets are redacted from its arguments, "
                "and it bypasses the journal"
            )
            _report.warning(text, of_class.__name__, name)
        return manifest.UNKNOWN


class Tracking(RedactingStore):
    """Stand-in for a tracking store."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner, manifest.TRACKING)
        self._earlier_traces = trace_sums.Earlier()

    def update_run_info(self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None) -> Any:
        """Change status, end and name of a run; log the sums of its traces before it ends."""
        status = None if run_status is None else RunStatus.to_string(run_status)
        if status == "RUNNING":
            self._earlier_traces.resumed(run_id)
        if status in ("FINISHED", "FAILED", "KILLED"):
            self.log_sums_of_traces(run_id, end_time)
        return self.__getattr__("update_run_info")(run_id, run_status, end_time, run_name)

    def log_sums_of_traces(self, run_id: str, end_time: int | None = None) -> None:
        """Log the sums of the run's traces; `end_time` is in milliseconds since 1970, now by default."""
        mlflow_internals.wait_for_traces_within(_TRACES_PATIENCE)
        trace_sums.end_run(run_id, partial(self._log_sums, run_id, end_time or int(time.time() * 1000)))

    def _log_sums(self, run_id: str, timestamp: int, sums: dict[str, float]) -> None:
        if run_id in self._earlier_traces:
            experiment_id = self._inner.get_run(run_id).info.experiment_id
            self._earlier_traces.add(sums, run_id, self._inner, experiment_id, run_id)
        self._inner.log_batch(run_id, [Metric(name, value, timestamp, 0) for name, value in sums.items()], [], [])


class Registry(RedactingStore):
    """Stand-in for a model registry."""

    def __init__(self, await_files: Callable[[str], None], inner: Any) -> None:
        super().__init__(inner, manifest.REGISTRY)
        self._await_files = await_files

    def create_model_version(self, name: str, source: str, *arguments: Any, **fields: Any) -> Any:
        """Register a model once its files are uploaded."""
        self._await_files(source)
        return self.__getattr__("create_model_version")(name, source, *arguments, **fields)
