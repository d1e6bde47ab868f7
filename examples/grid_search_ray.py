"""Search a grid of parameters on a local Ray: each candidate is a child run of one parent.

Run it under the supervisor, `autogen-team run examples/grid_search_ray.py`, or alone, `python
examples/grid_search_ray.py`. It needs `pip install 'autogen-team[ray]' scikit-learn`.
"""

from __future__ import annotations

import os

import mlflow
import numpy as np
import ray
from loguru import logger
from sklearn.datasets import load_digits
from sklearn.model_selection import ParameterGrid, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from autogen_team import GlobalContext
from autogen_team.io.services import MlflowService
from autogen_team.workers.ray import remote

GRID = ParameterGrid({"C": [0.1, 1.0, 10.0], "gamma": ["scale", 0.001]})


def main() -> None:
    """Evaluate the candidates in Ray's workers, and log the best one to the parent run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    service = MlflowService(autolog_disable=True)  # only parameters and score of a candidate matter here
    local = ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
    with local, GlobalContext(mlflow_service=service) as context, context.run("grid search"):
        digits = load_digits()
        images, labels = ray.put(digits.data), ray.put(digits.target)
        candidate = remote(context, evaluate, nested="candidate")
        scores = ray.get([candidate.remote(parameters, images, labels) for parameters in GRID])

        best = int(np.argmax(scores))
        mlflow.log_params(GRID[best])
        mlflow.log_metric("cross_validation_accuracy", scores[best])
        print(f"the best of {len(GRID)}: {GRID[best]}, accuracy {scores[best]:.3f}")


def evaluate(parameters: dict[str, object], images: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy in cross-validation; called in a worker, inside a child run."""
    mlflow.log_params(parameters)
    accuracy = cross_val_score(make_pipeline(StandardScaler(), SVC(**parameters)), images, labels, cv=3).mean()
    mlflow.log_metric("cross_validation_accuracy", accuracy)
    logger.info("{} scores {:.3f}", parameters, accuracy)
    return float(accuracy)


if __name__ == "__main__":
    main()
