"""Search for the best classifier of handwritten digits on a Dask cluster: a child run per candidate.

Run it under the supervisor, `autogen-team run examples/grid_search_dask.py`, or alone,
`python examples/grid_search_dask.py`. The cluster is two processes on this machine; for an existing cluster, only
change to `Client("tcp://...")`.
"""

from __future__ import annotations

import logging
from typing import Any

import mlflow
import numpy as np
from distributed import Client, LocalCluster
from loguru import logger
from sklearn.datasets import load_digits
from sklearn.model_selection import ParameterGrid, cross_val_score
from sklearn.svm import SVC

from autogen_team import GlobalContext
from autogen_team.io.services import MlflowService
from autogen_team.workers.dask import workers

GRID = list(ParameterGrid({"C": [0.1, 1.0, 10.0], "gamma": [0.0001, 0.001, 0.01]}))


def main() -> None:
    """Run the whole search inside the global context."""
    logging.getLogger("distributed").setLevel("WARNING")  # otherwise Dask logs 40 lines about its cluster
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0")
    # Autologging would log every model that cross-validation fits.
    context = GlobalContext(mlflow_service=MlflowService(autolog_disable=True))
    with cluster, cluster.get_client() as client, context:
        with context.run("grid search", description="Which SVC knows handwritten digits best?") as run:
            with workers(client, context):
                scores = search(client, context)
            best = max(range(len(scores)), key=scores.__getitem__)
            mlflow.log_params(GRID[best])
            mlflow.log_metric("cross_validation_accuracy", scores[best])
        info = run.info
        context.logger.success("best of {}: {} with {:.4f}", len(GRID), name_of(GRID[best]), scores[best])
        print(f"best: {name_of(GRID[best])}, accuracy {scores[best]:.4f}")
        print(f"see: {context.mlflow_service.link(info.experiment_id, info.run_id) or 'autogen-team ui --open'}")


def search(client: Client, context: GlobalContext) -> list[float]:
    """Return the accuracy of each candidate of the grid."""
    digits = client.submit(load_digits, return_X_y=True)  # a task of the parent run; its result stays on the cluster
    futures = [
        client.submit(context.bind(evaluate, nested=name_of(candidate)), candidate, digits) for candidate in GRID
    ]
    return client.gather(futures)


def evaluate(candidate: dict[str, Any], digits: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the accuracy of a candidate in cross-validation, and log it to the candidate's run, which is open."""
    mlflow.log_params(candidate)
    folds = cross_val_score(SVC(**candidate), *digits, cv=3)
    for number, accuracy in enumerate(folds):
        mlflow.log_metric("fold_accuracy", accuracy, step=number)
    mlflow.log_metric("cross_validation_accuracy", folds.mean())
    logger.info("{}: {:.4f}", name_of(candidate), folds.mean())
    return float(folds.mean())


def name_of(candidate: dict[str, Any]) -> str:
    """Return the name of a candidate's run."""
    return " ".join(f"{name}={value:g}" for name, value in candidate.items())


if __name__ == "__main__":
    main()
