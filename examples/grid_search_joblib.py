"""Search for the best classifier of handwritten digits with joblib, in several processes: a child run per candidate.

Run it under the supervisor, `autogen-team run examples/grid_search_joblib.py`, or alone,
`python examples/grid_search_joblib.py`.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
from joblib import Parallel, delayed
from loguru import logger
from sklearn.datasets import load_digits
from sklearn.model_selection import ParameterGrid, cross_val_score
from sklearn.svm import SVC

from autogen_team import GlobalContext
from autogen_team.io.services import MlflowService
from autogen_team.workers.joblib import workers

GRID = list(ParameterGrid({"C": [0.1, 1.0, 10.0], "gamma": [0.0001, 0.001, 0.01]}))


def main() -> None:
    """Run the whole search inside the global context."""
    # Autologging would log every model that cross-validation fits.
    with GlobalContext(mlflow_service=MlflowService(autolog_disable=True)) as context:
        with context.run("grid search", description="Which SVC knows handwritten digits best?") as run:
            images, labels = load_digits(return_X_y=True)
            with workers(context, n_jobs=2):
                tasks = [
                    delayed(context.bind(evaluate, nested=name_of(candidate)))(candidate, images, labels)
                    for candidate in GRID
                ]
                scores = Parallel()(tasks)
            best = max(range(len(scores)), key=scores.__getitem__)
            mlflow.log_params(GRID[best])
            mlflow.log_metric("cross_validation_accuracy", scores[best])
        info = run.info
        context.logger.success("best of {}: {} with {:.4f}", len(GRID), name_of(GRID[best]), scores[best])
        print(f"best: {name_of(GRID[best])}, accuracy {scores[best]:.4f}")
        print(f"see: {context.mlflow_service.link(info.experiment_id, info.run_id) or 'autogen-team ui --open'}")


def evaluate(candidate: dict[str, Any], images: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy of a candidate in cross-validation, and log it to the candidate's run, which is open."""
    mlflow.log_params(candidate)
    folds = cross_val_score(SVC(**candidate), images, labels, cv=3)
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
