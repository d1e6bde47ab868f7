"""Metrics as journal entries: checked by MLflow's own rules, and grouped by time and step.

A key that has passed the checks is cached in its journal form, so that a loop is checked only once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from autogen_team._capture import mlflow_internals
from autogen_team._process import run_events
from autogen_team._spool import records

_MOST_KEYS = 10_000
_LARGEST = 2**63 - 1
"""Largest absolute step, and largest time, that a database and a server can hold."""


class MetricEntries:
    """Builds the bodies of metric entries."""

    def __init__(self, *, is_remote: bool) -> None:
        """Apply the rules of a server, or those of any other store; the two accept different numbers."""
        self._is_remote = is_remote
        self._keys: dict[str, str] = {}
        """Keys that have passed the checks, each with its form in the journal."""

    def of_one(self, run_id: str, metric: Metric) -> str:
        """Return the body of a metric, or raise MLflow's error."""
        value = metric.value
        timestamp: float = metric.timestamp
        step: float = metric.step
        quoted = self._keys.get(metric.key)
        if quoted is None or not (
            type(value) is float
            and type(step) is type(timestamp) is int
            and 0 <= timestamp <= _LARGEST
            and -_LARGEST <= step <= _LARGEST
        ):
            quoted, value, timestamp, step = self._checked(metric.key, value, timestamp, step)
        try:
            extras = records.metric_extras(metric.model_id, metric.dataset_name, metric.dataset_digest)
        except TypeError as error:
            raise _not_text(metric.dataset_name, error) from None
        if not isfinite(value):
            run_events.not_finite(run_id, metric.key, value, step)
        return records.metrics_body(run_id, timestamp, step, records.pair(quoted, value), extras)

    def of_floats(
        self, run_id: str, metrics: Mapping[str, Any], timestamp: int, step: float
    ) -> tuple[list[str], Exception | None]:
        """Return the body of the valid metrics, if there are any, and the error of the first invalid one."""
        pairs = []
        fault: Exception | None = None
        is_fine = type(step) is int and -_LARGEST <= step <= _LARGEST
        for key, given in metrics.items():
            value = given
            quoted = self._keys.get(key)
            if quoted is None or type(value) is not float or not is_fine:
                try:
                    quoted, value, _, step = self._checked(key, mlflow_internals.as_float(given), timestamp, step)
                except Exception as error:
                    fault = fault or error
                    continue
            if not isfinite(value):
                run_events.not_finite(run_id, key, value, step)
            pairs.append(records.pair(quoted, value))
        return [records.metrics_body(run_id, timestamp, step, ",".join(pairs))] if pairs else [], fault

    def of_many(self, run_id: str, metrics: Sequence[Metric]) -> tuple[list[str], Exception | None]:
        """Return the bodies of the valid metrics, and the error of the first invalid one."""
        bodies: list[str] = []
        fault: Exception | None = None
        group: dict[str, str] = {}
        shared: tuple[Any, ...] = ()
        for at, metric in enumerate(metrics):
            try:
                quoted, value, timestamp, step = self._checked(
                    metric.key, metric.value, metric.timestamp, metric.step, f"metrics[{at}]"
                )
            except Exception as error:
                fault = fault or error
                continue
            about = (timestamp, step, metric.model_id, metric.dataset_name, metric.dataset_digest)
            if group and (about != shared or metric.key in group):
                bodies.append(_body_of_group(run_id, shared, group))
                group = {}
            shared = about
            if not isfinite(value):
                run_events.not_finite(run_id, metric.key, value, step)
            group[metric.key] = records.pair(quoted, value)
        if group:
            bodies.append(_body_of_group(run_id, shared, group))
        return bodies, fault

    def _checked(
        self, key: Any, value: Any, timestamp: Any, step: Any, path: str = ""
    ) -> tuple[str, float, float, float]:
        """Return the key in its journal form and the numbers in the store's form, or raise MLflow's error."""
        mlflow_internals.check_metric(key, value, timestamp, step, path=path)
        number = float(value)
        if not _is_finite(step) or not _is_finite(timestamp):
            text = f"the step {step!r} or the timestamp {timestamp!r} of the metric {key!r} is not a finite number"
            raise MlflowException(text, error_code=INVALID_PARAMETER_VALUE)
        if self._is_remote:
            Metric(key, number, timestamp, step).to_proto()  # raise now: a server accepts only whole numbers
        timestamp, step = _plain(timestamp), _plain(step)
        if not (timestamp <= _LARGEST and -_LARGEST <= step <= _LARGEST):
            text = f"the step {step} or the timestamp {timestamp} of the metric {key!r} has more than 64 bits"
            raise MlflowException(text, error_code=INVALID_PARAMETER_VALUE)
        quoted = records.quote(key)
        if len(self._keys) < _MOST_KEYS:
            self._keys[key] = quoted
        return quoted, number, timestamp, step


def _is_finite(number: Any) -> bool:
    try:
        return isfinite(number)
    except OverflowError:  # an integer too large for a float
        return True
    except TypeError:  # a complex number, which MLflow accepts as a number
        return False


def _plain(number: Any) -> float:
    """Return the number as a database stores it, where True is 1."""
    return int(number) if number == int(number) else float(number)


def _body_of_group(run_id: str, shared: tuple[Any, ...], group: dict[str, str]) -> str:
    timestamp, step, *extras = shared
    return records.metrics_body(run_id, timestamp, step, ",".join(group.values()), _extras(*extras))


def _extras(model_id: str | None, dataset_name: str | None, dataset_digest: str | None) -> str:
    try:
        return records.metric_extras(model_id, dataset_name, dataset_digest)
    except TypeError as error:
        raise _not_text(dataset_name, error) from None


def _not_text(dataset_name: object, error: TypeError) -> MlflowException:
    """Return the error for a dataset name that cannot be written, such as one with a lone surrogate."""
    return MlflowException(f"dataset {dataset_name!r}: {error}", error_code=INVALID_PARAMETER_VALUE)
