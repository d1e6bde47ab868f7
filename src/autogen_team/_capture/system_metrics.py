"""System metrics of the job's container and GPUs, sampled outside the job.

MLflow starts a thread in the job for each run with system metrics. The class of this thread is replaced by one that
leaves the work to the process that ships the journal. Without a journal, MLflow's thread runs, with our figures.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import mlflow
from mlflow import environment_variables
from mlflow.system_metrics import system_metrics_monitor
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from autogen_team._capture import write_behind
from autogen_team._process import Undo, identity
from autogen_team._process.patches import replace
from autogen_team._ship.resources import Resources
from autogen_team._ship.system_metrics import PREFIX, Order, variables_of

_GPUS_OF_AMD = "pyrsmi"
"""The library that MLflow uses to read AMD GPUs; if it is installed, MLflow's own figures are kept."""
_IN_EACH_SAMPLE = "system_memory_usage_percentage"


def sample_outside() -> Undo:
    """Replace MLflow's monitor of system metrics until the returned function is called."""
    return replace(system_metrics_monitor, "SystemMetricsMonitor", lambda _plain, _is_active: _Monitor)


@contextmanager
def sampling(run_id: str, *, is_wanted: bool | None) -> Iterator[None]:
    """Sample system metrics inside the block for a run that another process has open.

    If `is_wanted` is None, MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING decides.
    """
    variables: Any = environment_variables
    if is_wanted or (is_wanted is None and variables.MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get()):
        monitor = _Monitor(run_id)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()
    else:
        yield


class _Monitor(SystemMetricsMonitor):
    """Monitor that MLflow starts for a run, and stops at the end of the run."""

    def __init__(
        self,
        run_id: str,
        sampling_interval: int = 10,
        samples_before_logging: int = 1,
        resume_logging: bool = False,
        node_id: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        self._working = write_behind.of(tracking_uri or mlflow.get_tracking_uri())
        has_figures = importlib.util.find_spec(_GPUS_OF_AMD) is None
        if self._working is None or not has_figures:
            self._working = None
            super().__init__(  # type: ignore[no-untyped-call]
                run_id, sampling_interval, samples_before_logging, resume_logging, node_id, tracking_uri
            )
            if has_figures:
                self.monitors = [_Figures()]
            return
        variables: Any = environment_variables
        node = variables.MLFLOW_SYSTEM_METRICS_NODE_ID.get() or node_id or identity.node()
        prefix = f"{PREFIX}{node}/" if node else PREFIX
        self._order = Order(
            run_id=run_id,
            pid=identity.job(),
            every=variables.MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or sampling_interval,
            together=variables.MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING.get() or samples_before_logging,
            began=time.time(),
            first_step=_next_step(run_id, prefix, tracking_uri) if resume_logging else 0,
            prefix=prefix,
            environment=variables_of(os.environ),
        )

    def start(self) -> None:
        """Start logging."""
        if self._working is None:
            super().start()  # type: ignore[no-untyped-call]
        else:
            self._working.shipper.sample(asdict(self._order))

    def finish(self) -> None:
        """Stop logging."""
        if self._working is None:
            super().finish()  # type: ignore[no-untyped-call]
        else:
            self._working.shipper.sample_no_more(self._order.run_id)


class _Figures(BaseMetricsMonitor):
    """Our figures, in place of MLflow's."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._resources = Resources(os.getpid(), os.environ)

    def collect_metrics(self) -> None:
        """Take a sample."""
        for key, value in self._resources.sample().items():
            self._metrics[key].append(value)

    def aggregate_metrics(self) -> Any:
        """Return the means of the samples."""
        return {key: sum(values) / len(values) for key, values in self._metrics.items()}


def _next_step(run_id: str, prefix: str, tracking_uri: str | None) -> int:
    """Return the first step for the samples of a resumed run."""
    try:
        history = mlflow.MlflowClient(tracking_uri).get_metric_history(run_id, prefix + _IN_EACH_SAMPLE)
    except mlflow.MlflowException:
        return 0
    return max((metric.step + 1 for metric in history), default=0)
