"""Tune and train a classifier of handwritten digits, and register the best one.

Run it under the supervisor, `autogen-team run examples/train.py`, or alone, `python examples/train.py`.
"""

from __future__ import annotations

import mlflow
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from sklearn.model_selection import ParameterGrid, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from tqdm import tqdm

from autogen_team import GlobalContext

GRID = ParameterGrid({"C": [0.1, 1.0, 10.0], "gamma": ["scale", 0.001]})
ALIAS = "champion"


def main() -> None:
    """Run the whole job inside the global context."""
    with GlobalContext() as context, context.run("digits", description="A classifier of handwritten digits.") as run:
        digits = load_digits()
        x_train, x_test, y_train, y_test = train_test_split(digits.data, digits.target, test_size=0.25, random_state=0)
        context.logger.info("{} images to train on, {} to test on", len(x_train), len(x_test))

        best = tune(context, x_train, y_train)
        model = make_pipeline(StandardScaler(), SVC(**best)).fit(
            x_train, y_train
        )  # autologged: parameters, metrics, model
        accuracy = accuracy_score(y_test, model.predict(x_test))

        model_uri = mlflow.last_logged_model().model_uri
        version = context.mlflow_service.register(model_uri, alias=ALIAS, tags={"accuracy": f"{accuracy:.3f}"})
        registered = f"{version.name} version {version.version}"
        context.logger.success("{} is the {}", registered, ALIAS)
        context.notify("model trained", f"run {run.info.run_name}: accuracy {accuracy:.3f}, {registered}")


def tune(context: GlobalContext, images: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    """Return the parameters with the best score in cross-validation, and log each score as a metric of the run."""
    scores = []
    # Autologging would create a run for every candidate, but only the final model is wanted.
    for step, parameters in enumerate(tqdm(GRID, desc="tuning", unit="candidate")):
        score = cross_val_score(make_pipeline(StandardScaler(), SVC(**parameters)), images, labels, cv=3).mean()
        mlflow.log_metric("cross_validation_accuracy", score, step=step)
        context.logger.info("{} scores {:.3f}", parameters, score)
        scores.append(score)
    return list(GRID)[scores.index(max(scores))]


if __name__ == "__main__":
    main()
