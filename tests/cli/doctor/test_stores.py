"""`autogen-team doctor`: checks of stores, which leave nothing behind."""

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
    """The checks leave no run, not even a deleted one, no experiment and no file."""
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


def test_a_missing_experiment_is_not_created(store_uri, examine):
    """The trial run is created in MLflow's default experiment."""
    client = mlflow.MlflowClient(store_uri)

    status, checks = examine("--experiment", "digits")

    assert status == 0
    assert checks["experiment"]["outcome"] == "note"
    assert "'digits' does not exist yet" in checks["experiment"]["found"]
    assert "in the experiment 'Default'" in checks["runs"]["found"]
    assert client.get_experiment_by_name("digits") is None
    assert client.search_runs(["0"], run_view_type=ViewType.ALL) == []


def test_a_missing_store_is_not_created(examine, all_files):
    """The check creates no file."""
    before = all_files()

    status, checks = examine()

    assert status == 0
    assert checks["tracking"]["outcome"] == "note"
    assert "the first run creates it" in checks["tracking"]["found"]
    assert checks["runs"]["found"] == "skipped: there is no tracking store yet"
    assert all_files() == before


def test_a_folder_is_a_store_too(examine, monkeypatch, all_files):
    """A note says that MLflow will drop file stores; nothing of the trial run remains."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(Path("mlruns").absolute().as_uri())
    client.create_experiment("autogen_team")
    before = all_files()

    status, checks = examine(MLFLOW_TRACKING_URI=Path("mlruns").absolute().as_uri())

    assert status == 0
    assert outcomes(checks)["tracking"] == "note"
    assert {checks[name]["outcome"] for name in ("registry", "runs", "artifacts")} == {"ok"}
    assert all_files() == before


def test_a_working_server_is_reported_with_its_version(mlflow_server, examine):
    """A deleted run with our tag is the only trace on the server."""
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


def test_a_dead_server_fails_and_dependent_checks_are_skipped(free_port, run_python, examine):
    """The remedy is given, in the table too."""
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


def test_a_silent_server_is_dead(examine):
    """`doctor` waits as long as a job would."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"

        status, checks = examine("--tracking-uri", uri, "--set", "mlflow.connect_timeout=1")

    assert status == 1
    assert "does not answer" in checks["tracking"]["found"]


def test_a_dead_server_is_a_note_in_mode_auto(free_port, examine):
    """The note says that the job works offline and how to deliver its runs."""
    uri = f"http://127.0.0.1:{free_port()}"

    status, checks = examine("--tracking-uri", uri, AUTOGEN_TEAM_MLFLOW_MODE="auto")

    assert (status, checks["tracking"]["outcome"]) == (0, "note")
    assert "autogen-team sync" in checks["tracking"]["remedy"]


def test_a_separate_registry_is_checked_separately(experiment, migrated_database, free_port, examine):
    """The failure of one store is not reported for the other."""
    status, checks = examine(
        MLFLOW_REGISTRY_URI=f"sqlite:///{migrated_database}", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}"
    )
    assert (status, checks["registry"]["outcome"], checks["tracking"]["outcome"]) == (1, "ok", "fail")

    status, checks = examine(MLFLOW_REGISTRY_URI=f"http://127.0.0.1:{free_port()}")

    assert status == 1
    assert (checks["registry"]["outcome"], checks["runs"]["outcome"]) == ("fail", "ok")


@pytest.mark.parametrize(("seconds", "outcome"), [(0, "ok"), (3600, "note"), (-3600, "note")])
def test_a_wrong_clock_is_a_note(web_server, examine, seconds, outcome):
    """The note says which clock is ahead, and by how much."""
    uri = web_server(Date=lambda: formatdate(time() + seconds, usegmt=True))
    _, checks = examine("--tracking-uri", uri)

    assert checks["clock"]["outcome"] == outcome
    assert ("ahead of" if seconds > 0 else "behind") in checks["clock"]["found"] or not seconds
    assert checks["tracking"]["outcome"] == "ok"


def test_a_server_without_a_date_and_a_store_fails_row_by_row(web_server, examine):
    """Each check of a web server that is not MLflow fails separately."""
    status, checks = examine("--tracking-uri", web_server())

    assert status == 1
    assert "no date" in checks["clock"]["found"]
    assert {checks[name]["outcome"] for name in ("registry", "experiment")} == {"fail"}
    assert checks["runs"]["found"] == "skipped: see experiment"


def test_a_server_that_requires_a_password_fails_with_the_remedy(web_server, examine):
    """No further requests are sent."""
    status, checks = examine("--tracking-uri", web_server(version=401))

    assert status == 1
    assert "MLFLOW_TRACKING_PASSWORD" in checks["tracking"]["remedy"]
    assert checks["runs"]["found"] == "skipped: the tracking server denies access"


def test_a_server_without_a_version_is_a_note(web_server, examine):
    """The server may be old, or a proxy may be in between."""
    _, checks = examine("--tracking-uri", web_server(version=404))

    assert checks["tracking"]["outcome"] == "note"
    assert "does not report its version" in checks["tracking"]["found"]


def test_a_server_of_another_major_version_is_a_note(web_server, examine):
    """The note has both versions."""
    _, checks = examine("--tracking-uri", web_server(text=b"2.22.0"))

    assert checks["tracking"]["outcome"] == "note"
    assert f"MLflow 2.22.0, but {mlflow.__version__} is installed here" in checks["tracking"]["found"]


@pytest.mark.parametrize("uri", ["http://[1:2", "sqlite:////proc/nowhere/mlflow.db"])
def test_an_invalid_store_fails(examine, uri):
    """Invalid URIs and places where no file can be created fail."""
    status, checks = examine("--tracking-uri", uri)

    assert (status, checks["tracking"]["outcome"]) == (1, "fail")
    assert "MLFLOW_TRACKING_URI" in checks["tracking"]["remedy"]


def test_a_store_that_rejects_runs_fails(experiment, examine):
    """The store's message is reported in one line, and nothing is left."""
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
    """The remedy is the command that restores the experiment."""
    client, experiment_id = experiment
    client.delete_experiment(experiment_id)

    status, checks = examine()

    assert status == 1
    assert f"mlflow experiments restore --experiment-id {experiment_id}" in checks["experiment"]["remedy"]
    assert checks["runs"]["found"] == "skipped: the experiment is deleted"


def test_artifacts_that_cannot_be_written_fail_and_the_run_is_deleted(store_uri, examine):
    """The run is reported as ok, and its artifacts as failed."""
    client = mlflow.MlflowClient(store_uri)
    Path("a_file").touch()
    location = Path("a_file/artifacts").absolute().as_uri()
    experiment_id = client.create_experiment("autogen_team", artifact_location=location)

    status, checks = examine()

    assert status == 1
    assert (checks["runs"]["outcome"], checks["artifacts"]["outcome"]) == ("ok", "fail")
    assert client.search_runs([experiment_id], run_view_type=ViewType.ALL) == []


def test_a_database_of_another_mlflow_fails_and_is_not_altered(store_uri, examine):
    """MLflow itself would migrate an old database when it opens it."""
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


def test_a_file_that_is_not_a_database_fails(examine):
    """Checks that depend on the database are skipped."""
    Path("mlflow.db").write_text("dear diary, " * 1000)

    status, checks = examine()

    assert status == 1
    assert "not a database" in checks["tracking"]["found"]
    assert checks["runs"]["found"] == "skipped: see tracking"
