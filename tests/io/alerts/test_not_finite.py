"""The first metric of a run that is not finite causes an alert."""

from __future__ import annotations

import math

import mlflow
import pytest

from autogen_team import GlobalContext
from autogen_team.io.services import AlertsService, MlflowService
from autogen_team.testing import capture_alerts


@pytest.fixture
def alerts_of():
    """Return a function that returns the titles of alerts of a job that does `work`."""

    def run(work, **fields):
        alerts = AlertsService(**fields)
        context = GlobalContext(alerts_service=alerts, mlflow_service=MlflowService(autolog_disable=True))
        with capture_alerts(alerts) as found, context:
            for name in ("first", "second"):
                with context.run(name, log_system_metrics=False):
                    work(context)
        return [alert.title for alert in found]

    return run


@pytest.mark.parametrize(
    "log",
    [
        lambda _, value: mlflow.log_metric("loss", value, step=7),
        lambda _, value: mlflow.log_metrics({"acc": 1.0, "loss": value}, step=7),
        lambda context, value: context.log_metrics({"acc": 1.0, "loss": value}, 7),
    ],
    ids=["log_metric", "log_metrics", "context"],
)
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_the_first_of_each_run_is_alerted(alerts_of, log, value):
    """The alert names the metric's key; later values of the run cause no alert."""

    def work(context):
        log(context, 0.5)
        log(context, value)
        log(context, value)

    assert alerts_of(work, on_nan=True) == [f"loss is {value}"] * 2


def test_the_alert_names_the_step():
    """The alert contains the step and the run's id."""
    alerts = AlertsService(on_nan=True)
    context = GlobalContext(alerts_service=alerts, mlflow_service=MlflowService(autolog_disable=True))
    with capture_alerts(alerts) as found, context, context.run("train", log_system_metrics=False) as run:
        mlflow.log_metric("loss", math.nan, step=12)

    assert [(alert.message, alert.level) for alert in found] == [
        (f"metric loss, step 12, run {run.info.run_id}", "warning")
    ]


def test_nothing_is_alerted_by_default(alerts_of):
    """By default, NaN is logged without an alert."""
    assert alerts_of(lambda _: mlflow.log_metric("loss", math.nan)) == []
