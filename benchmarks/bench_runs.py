"""Compare the time to open and close a run with plain MLflow's `mlflow.start_run` on the same store.

The two take turns in one process, on one SQLite store, with some runs of each. The service is stopped in between,
because while it runs, MLflow's own calls go through the journal too. The figure is the median of all runs after the
first round.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from report import Row, show

ROUNDS = 15
RUNS = 12


def seconds(run: Callable[[], AbstractContextManager[object]]) -> float:
    """Return the seconds that a run takes, including the call: `mlflow.start_run` starts the run before `with`."""
    begun = time.perf_counter()
    with run():
        pass
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print the comparison."""
    import mlflow

    from autogen_team.io.services import MlflowService

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        service = MlflowService(tracking_uri=f"sqlite:///{folder}/mlflow.db", autolog_disable=True)
        config = MlflowService.RunConfig(name="run", description="about", tags={"a": "b"}, log_system_metrics=False)
        arguments = {"run_name": "run", "description": "about", "tags": {"a": "b"}, "log_system_metrics": False}
        ours, bare = [], []
        for _ in range(ROUNDS):
            with service:
                ours += [seconds(partial(service.run_context, config)) for _ in range(RUNS)]
            mlflow.set_tracking_uri(service.tracking_uri)
            mlflow.set_registry_uri(service.tracking_uri)
            mlflow.set_experiment(service.experiment_name)
            bare += [seconds(partial(mlflow.start_run, **arguments)) for _ in range(RUNS)]
        warm = slice(RUNS, None)
        show(
            [
                Row(
                    "run_context",
                    statistics.median(ours[warm]) * 1000,
                    statistics.median(bare[warm]) * 1000,
                    "mlflow.start_run",
                    "ms",
                    1.05,
                )
            ]
        )


if __name__ == "__main__":
    main()
