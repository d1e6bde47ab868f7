"""A job that logs a metric and ends, with plain MLflow or in our context; arguments: `plain` or `ours`, and a URI."""

from __future__ import annotations

import os
import sys
import tempfile

kind, uri = sys.argv[1:]


def plain() -> None:
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("short")
    mlflow.autolog(silent=True)
    with mlflow.start_run(log_system_metrics=False):
        mlflow.log_metric("loss", 0.5)


def ours() -> None:
    os.environ["AUTOGEN_TEAM_STATE_DIR"] = tempfile.mkdtemp()

    from autogen_team import GlobalContext
    from autogen_team.io.services import MlflowService

    with (
        GlobalContext(mlflow_service=MlflowService(tracking_uri=uri, experiment_name="short")) as context,
        context.run("short", log_system_metrics=False),
    ):
        import mlflow

        mlflow.log_metric("loss", 0.5)


{"plain": plain, "ours": ours}[kind]()
