"""The alert about the end of a job: when it is sent, and its content."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from autogen_team import GlobalContext
from autogen_team._alerts.report import Reporter
from autogen_team._process import run_events
from autogen_team.io.services import AlertsService, LoggerService, MlflowService


@pytest.fixture
def job(store_uri, capsys):
    """Return a function that runs a job that ends in a given way, and returns its alerts."""

    def run(error: BaseException | None = None, **fields: object) -> str:
        context = GlobalContext(
            logger_service=LoggerService(sink="job.log"),
            alerts_service=AlertsService(enable=False, app_name="job"),
            mlflow_service=MlflowService(tracking_uri=store_uri, autolog_disable=True),
            **fields,
        )
        expected = nullcontext() if error is None else pytest.raises(type(error))
        with expected, context, context.run("train", log_system_metrics=False):
            if error is not None:
                raise error
        return capsys.readouterr().out

    return run


def test_a_failure_is_alerted(job):
    """The alert has the host, the reason and the run; the traceback is on the console already."""
    first, reason, run = job(ValueError("bad shape")).splitlines()

    assert first.startswith("[job] train failed: after ")
    assert reason == "    ValueError: bad shape"
    assert run.startswith("    experiment autogen_team, run ")


def test_a_kill_is_alerted(job):
    """Another user or the system may have ended the job."""
    assert "train was killed" in job(KeyboardInterrupt())


def test_a_success_is_alerted_only_on_request(job):
    """By default, a successful job sends no alert."""
    assert job() == ""
    assert job(SystemExit(0)) == ""
    assert "train finished" in job(alert_on="always")


def test_alerts_can_be_disabled(job):
    """`never` as an argument or in AUTOGEN_TEAM_ALERT_ON disables the alert."""
    assert job(ValueError("x"), alert_on="never") == ""


def test_the_variable_sets_when_to_alert(job, monkeypatch):
    """The variable sets the field, as for any setting."""
    monkeypatch.setenv("AUTOGEN_TEAM_ALERT_ON", "never")

    assert job(ValueError("x")) == ""


def test_only_rank_0_alerts_about_a_success(job, monkeypatch):
    """Each rank alerts about its own failure."""
    monkeypatch.setenv("RANK", "3")

    assert job(alert_on="always") == ""
    assert "train failed (rank 3)" in job(ValueError("x"))


def test_a_nested_run_causes_no_alert():
    """A candidate of a search may fail without an alert."""
    told = []
    reporter = Reporter(lambda *alert, **level: told.append(alert), always=True)
    run = run_events.Run("1", "candidate", "e", None, attach=lambda path, folder: None, parent_id="0")
    reporter.run_ended(run, run_events.End("FAILED", "ValueError", None, 1.0))

    assert told == []


def test_secrets_are_masked(job):
    """An exception often contains the address of a server."""
    out = job(ConnectionError("https://bob:hunter2@host refused"))

    assert "hunter2" not in out
    assert "https://bob:***@host" in out


def test_only_one_of_two_contexts_alerts(job, store_uri):
    """A script with its own context inside `autogen-team run` alerts once."""
    outer = GlobalContext(
        logger_service=LoggerService(sink="outer.log"),
        alerts_service=AlertsService(enable=False, app_name="outer"),
        mlflow_service=MlflowService(tracking_uri=store_uri, autolog_disable=True),
    )
    with outer:
        out = job(ValueError("x"))

    assert out.count("train failed") == 1
