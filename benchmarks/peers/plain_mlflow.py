"""Plain MLflow, and MLflow with a store that does nothing; the argument is the tracking URI."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import loop
import mlflow
from mlflow.tracking._tracking_service import utils


class Nothing:
    """A store that accepts metrics and drops them."""

    def log_metric(self, run_id: str, metric: object) -> None:
        pass


def log(step: int) -> None:
    mlflow.log_metric("loss", 1 / (step + 1), step=step)


@contextmanager
def sync(*, delivers: bool) -> Iterator[loop.Log]:  # noqa: ARG001 - it always delivers
    with mlflow.start_run(log_system_metrics=False):
        yield log


@contextmanager
def nothing(*, delivers: bool) -> Iterator[loop.Log]:  # noqa: ARG001 - it never delivers
    registry, store = utils._tracking_store_registry, Nothing()
    mlflow.set_registry_uri(sys.argv[1])  # otherwise each call looks for pyspark, which would make us look better
    with mlflow.start_run(log_system_metrics=False):
        registry._get_store_with_resolved_uri = lambda uri, artifact_uri=None: store  # noqa: ARG005
        try:
            yield log
        finally:
            del registry._get_store_with_resolved_uri
            mlflow.set_registry_uri(None)


mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("bench")
loop.serve({"log_metric": sync, "nothing": nothing})
