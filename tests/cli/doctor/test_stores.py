"""`autogen-team doctor`: stores, and that nothing is left of finding out about them."""

from __future__ import annotations

import socket
import sqlite3
from email.utils import formatdate
from pathlib import Path
from time import time

import mlflow
import pytest
from mlflow.entities import ViewType

DOCTOR = ("-m", "autogen_team", "doctor")
NO_DESKTOP = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere/bus"}


def outcomes(checks):
    """Return the outcome of each check."""
    return {name: check["outcome"] for name, check in checks.items()}


def test_a_store_that_works_is_ok_and_nothing_is_left(experiment, examine, all_files):
    """No run, not even a deleted one, no experiment, no file."""
    client, experiment_id = experiment
    before = all_files()

    status, checks = examine()

    assert status == 0
    assert outcomes(checks) == {
        **dict.fromkeys(["tracking", "registry", "experiment", "runs", "artifacts", "clock"], "ok"),
        **dict.fromkeys(["state folder", "log sink"], "ok"),
        "desktop": "note",
    }
    assert "nothing of it remains" in checks["runs"]["found"]
    assert all_files() == before
    assert client.search_runs([experiment_id, "0"], run_view_type=ViewType.ALL) == []
    names = {found.name for found in client.search_experiments(view_type=ViewType.ALL)}
    assert names == {"Default", "autogen_team"}


def test_an_experiment_that_is_not_there_is_not_made(store_uri, examine):
    """The run is tried out in MLflow's own experiment."""
    client = mlflow.MlflowClient(store_uri)

    status, checks = examine("--experiment", "digits")

    assert status == 0
    assert checks["experiment"]["outcome"] == "note"
    assert "'digits' does not exist yet" in checks["experiment"]["found"]
    assert "in the experiment 'Default'" in checks["runs"]["found"]
    assert client.get_experiment_by_name("digits") is None
    assert client.search_runs(["0"], run_view_type=ViewType.ALL) == []


def test_a_store_that_is_not_there_is_not_made(examine, all_files):
    """Nor anything else."""
    before = all_files()

    status, checks = examine()

    assert status == 0
    assert checks["tracking"]["outcome"] == "note"
    assert "the first run creates it" in checks["tracking"]["found"]
    assert checks["runs"]["found"] == "skipped: there is no tracking store yet"
    assert all_files() == before


def test_a_folder_is_a_store_too(examine, monkeypatch, all_files):
    """With a word about its future; of the run nothing remains."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(Path("mlruns").absolute().as_uri())
    client.create_experiment("autogen_team")
    before = all_files()

    status, checks = examine(MLFLOW_TRACKING_URI=Path("mlruns").absolute().as_uri())

    assert status == 0
    assert outcomes(checks)["tracking"] == "note"
    assert {checks[name]["outcome"] for name in ("registry", "runs", "artifacts")} == {"ok"}
    assert all_files() == before


def test_a_server_that_works_tells_its_version(mlflow_server, examine):
    """A deleted run with our tag is all that remains there."""
    client = mlflow.MlflowClient(mlflow_server)
    experiment_id = client.create_experiment("of the doctor")

    status, checks = examine("--experiment", "of the doctor", "--tracking-uri", mlflow_server)

    assert status == 0
    assert set(list(outcomes(checks).values())[:6]) == {"ok"}
    assert f"MLflow {mlflow.__version__}" in checks["tracking"]["found"]
    assert "give or take" in checks["clock"]["found"]
    assert client.search_runs([experiment_id]) == []
    (run,) = client.search_runs([experiment_id], run_view_type=ViewType.ALL)
    assert run.data.tags["autogen_team.doctor"] == "true"
    assert f"the deleted run {run.info.run_id} remains" in checks["runs"]["found"]
    assert client.list_artifacts(run.info.run_id) == []


def test_a_dead_server_fails_and_what_depends_on_it_is_skipped(free_port, run_python, examine):
    """With a remedy, in the table too."""
    options = ("--tracking-uri", f"http://127.0.0.1:{free_port()}")

    status, checks = examine(*options)

    assert status == 1
    assert checks["tracking"]["outcome"] == "fail"
    for name in ("registry", "experiment", "runs", "artifacts", "clock"):
        assert (checks[name]["outcome"], checks[name]["found"]) == (
            "note",
            "skipped: the tracking server does not answer",
        )

    status, out, err = run_python(*DOCTOR, *options, **NO_DESKTOP)
    assert (status, err) == (1, "")
    (row,) = [line for line in out.splitlines() if line.startswith("tracking ")]
    assert row.split()[1] == "FAIL"
    assert "AUTOGEN_TEAM_MLFLOW_MODE=auto" in row


def test_a_server_that_says_nothing_is_dead(examine):
    """And it is waited for as long as a job would wait."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"

        status, checks = examine("--tracking-uri", uri, "--set", "mlflow.connect_timeout=1")

    assert status == 1
    assert "does not answer" in checks["tracking"]["found"]


def test_a_dead_server_is_no_failure_for_those_who_can_work_offline(free_port, examine):
    """They are told how it goes on."""
    uri = f"http://127.0.0.1:{free_port()}"

    status, checks = examine("--tracking-uri", uri, AUTOGEN_TEAM_MLFLOW_MODE="auto")

    assert (status, checks["tracking"]["outcome"]) == (0, "note")
    assert "autogen-team sync" in checks["tracking"]["remedy"]


def test_a_registry_of_its_own_is_asked_on_its_own(experiment, migrated_database, free_port, examine):
    """Its failure is not that of the runs, nor the other way round."""
    status, checks = examine(
        MLFLOW_REGISTRY_URI=f"sqlite:///{migrated_database}", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}"
    )
    assert (status, checks["registry"]["outcome"], checks["tracking"]["outcome"]) == (1, "ok", "fail")

    status, checks = examine(MLFLOW_REGISTRY_URI=f"http://127.0.0.1:{free_port()}")

    assert status == 1
    assert (checks["registry"]["outcome"], checks["runs"]["outcome"]) == ("fail", "ok")


@pytest.mark.parametrize(("seconds", "outcome"), [(0, "ok"), (3600, "note"), (-3600, "note")])
def test_a_clock_that_is_wrong_is_a_note(web_server, examine, seconds, outcome):
    """It is told which one is ahead, by how much."""
    uri = web_server(Date=lambda: formatdate(time() + seconds, usegmt=True))
    _, checks = examine("--tracking-uri", uri)

    assert checks["clock"]["outcome"] == outcome
    assert ("ahead of" if seconds > 0 else "behind") in checks["clock"]["found"] or not seconds
    assert checks["tracking"]["outcome"] == "ok"


def test_a_server_without_a_date_and_a_store_fails_row_by_row(web_server, examine):
    """It answers, but it is no MLflow."""
    status, checks = examine("--tracking-uri", web_server())

    assert status == 1
    assert "no date" in checks["clock"]["found"]
    assert {checks[name]["outcome"] for name in ("registry", "experiment")} == {"fail"}
    assert checks["runs"]["found"] == "skipped: see experiment"


def test_a_server_that_wants_a_password_fails_with_where_to_put_it(web_server, examine):
    """And is not asked anything more."""
    status, checks = examine("--tracking-uri", web_server(version=401))

    assert status == 1
    assert "MLFLOW_TRACKING_PASSWORD" in checks["tracking"]["remedy"]
    assert checks["runs"]["found"] == "skipped: the tracking server denies access"


def test_a_server_that_does_not_tell_its_version_is_a_note(web_server, examine):
    """An old one, or a proxy in between."""
    _, checks = examine("--tracking-uri", web_server(version=404))

    assert checks["tracking"]["outcome"] == "note"
    assert "does not report its version" in checks["tracking"]["found"]


def test_a_server_of_another_major_version_is_a_note(web_server, examine):
    """Both versions are told."""
    _, checks = examine("--tracking-uri", web_server(text=b"2.22.0"))

    assert checks["tracking"]["outcome"] == "note"
    assert f"MLflow 2.22.0, but {mlflow.__version__} is installed here" in checks["tracking"]["found"]


@pytest.mark.parametrize("uri", ["http://[1:2", "sqlite:////proc/nowhere/mlflow.db"])
def test_a_store_that_cannot_be_fails(examine, uri):
    """An address that is none, a place where nothing can be made."""
    status, checks = examine("--tracking-uri", uri)

    assert (status, checks["tracking"]["outcome"]) == (1, "fail")
    assert "MLFLOW_TRACKING_URI" in checks["tracking"]["remedy"]


def test_a_store_that_takes_no_runs_fails(experiment, examine):
    """It is told what it says, in one line, and nothing is left."""
    client, experiment_id = experiment
    with sqlite3.connect("mlflow.db") as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON runs BEGIN SELECT RAISE(ABORT, 'no room'); END")
    database.close()

    status, checks = examine()

    assert (status, checks["runs"]["outcome"]) == (1, "fail")
    assert "no room" in checks["runs"]["found"]
    assert checks["artifacts"]["found"] == "skipped: see runs"
    assert client.search_runs([experiment_id], run_view_type=ViewType.ALL) == []


def test_a_deleted_experiment_fails(experiment, examine):
    """With the command that restores it."""
    client, experiment_id = experiment
    client.delete_experiment(experiment_id)

    status, checks = examine()

    assert status == 1
    assert f"mlflow experiments restore --experiment-id {experiment_id}" in checks["experiment"]["remedy"]
    assert checks["runs"]["found"] == "skipped: the experiment is deleted"


def test_artifacts_that_cannot_be_written_fail_and_the_run_is_deleted_all_the_same(store_uri, examine):
    """The run is fine, and the two are told apart."""
    client = mlflow.MlflowClient(store_uri)
    Path("a_file").touch()
    location = Path("a_file/artifacts").absolute().as_uri()
    experiment_id = client.create_experiment("autogen_team", artifact_location=location)

    status, checks = examine()

    assert status == 1
    assert (checks["runs"]["outcome"], checks["artifacts"]["outcome"]) == ("ok", "fail")
    assert client.search_runs([experiment_id], run_view_type=ViewType.ALL) == []


def test_a_database_of_another_mlflow_fails_and_is_not_altered(store_uri, examine):
    """MLflow itself would alter an old one when it opens it."""
    path = store_uri.removeprefix("sqlite:///")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = 'from_elsewhere'")
    database.close()
    before = Path(path).read_bytes()

    status, checks = examine()

    assert status == 1
    assert "from_elsewhere" in checks["tracking"]["found"]
    assert "mlflow db upgrade" in checks["tracking"]["remedy"]
    assert Path(path).read_bytes() == before


def test_what_is_no_database_fails(examine):
    """And what depends on it is skipped."""
    Path("mlflow.db").write_text("dear diary, " * 1000)

    status, checks = examine()

    assert status == 1
    assert "not a database" in checks["tracking"]["found"]
    assert checks["runs"]["found"] == "skipped: see tracking"
