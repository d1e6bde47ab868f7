"""The alert of a job that ends: when there is one, and what it says."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from autogen_team import GlobalContext
from autogen_team._alerts.report import Reporter
from autogen_team._process import run_events
from autogen_team.io.services import AlertsService, LoggerService, MlflowService


@pytest.fixture
def job(store_uri, capsys):
    """Return a function that runs a job which ends in a certain way, and returns what was alerted."""

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


def test_a_failure_is_told(job):
    """With the host, the reason and the run; the traceback is on the console already."""
    first, reason, run = job(ValueError("bad shape")).splitlines()

    assert first.startswith("[job] train failed: after ")
    assert reason == "    ValueError: bad shape"
    assert run.startswith("    experiment autogen_team, run ")


def test_a_kill_is_told(job):
    """Somebody else may have ended it."""
    assert "train was killed" in job(KeyboardInterrupt())


def test_a_success_is_not_told_unless_asked_for(job):
    """Jobs that do what they should are quiet."""
    assert job() == ""
    assert job(SystemExit(0)) == ""
    assert "train finished" in job(alert_on="always")


def test_nothing_is_told_when_that_is_switched_off(job):
    """By argument, or by the variable AUTOGEN_TEAM_ALERT_ON."""
    assert job(ValueError("x"), alert_on="never") == ""


def test_the_variable_says_when(job, monkeypatch):
    """As for any other setting."""
    monkeypatch.setenv("AUTOGEN_TEAM_ALERT_ON", "never")

    assert job(ValueError("x")) == ""


def test_of_many_ranks_only_the_first_tells_of_a_success(job, monkeypatch):
    """But each tells of its failure."""
    monkeypatch.setenv("RANK", "3")

    assert job(alert_on="always") == ""
    assert "train failed (rank 3)" in job(ValueError("x"))


def test_a_run_inside_a_run_is_the_job_s_own_business():
    """A candidate of a search may fail."""
    told = []
    reporter = Reporter(lambda *alert, **level: told.append(alert), always=True)
    run = run_events.Run("1", "candidate", "e", None, attach=lambda path, folder: None, parent_id="0")
    reporter.run_ended(run, run_events.End("FAILED", "ValueError", None, 1.0))

    assert told == []


def test_secrets_are_masked(job):
    """An exception often holds the address that it could not reach."""
    out = job(ConnectionError("https://bob:hunter2@host refused"))

    assert "hunter2" not in out
    assert "https://bob:***@host" in out


def test_of_two_contexts_one_tells(job, store_uri):
    """A script with its own context inside `autogen-team run` does not alert twice."""
    outer = GlobalContext(
        logger_service=LoggerService(sink="outer.log"),
        alerts_service=AlertsService(enable=False, app_name="outer"),
        mlflow_service=MlflowService(tracking_uri=store_uri, autolog_disable=True),
    )
    with outer:
        out = job(ValueError("x"))

    assert out.count("train failed") == 1
