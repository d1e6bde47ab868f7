"""`autogen-team doctor`: what works, what does not, and that nothing is left of finding out."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time

import mlflow
import pytest
from mlflow.entities import ViewType

DOCTOR = ("-m", "autogen_team", "doctor")
NO_DESKTOP = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere/bus"}


@pytest.fixture
def examine(run_python):
    """Return a function that runs `doctor --json`: status and checks by name, with remedies for failures."""

    def examine(*options, **environment):
        status, out, err = run_python(*DOCTOR, "--json", *options, **{**NO_DESKTOP, **environment})
        assert status in (0, 1), err
        report = json.loads(out)
        checks = {check["name"]: check for check in report["checks"]}
        assert len(checks) == len(report["checks"])
        assert report["ok"] == (status == 0)
        assert (status == 1) == any(check["outcome"] == "fail" for check in checks.values())
        assert [check for check in checks.values() if check["outcome"] == "fail" and not check["remedy"]] == []
        return status, checks

    return examine


@pytest.fixture
def experiment(store_uri):
    """Make the experiment of the default settings in the default store; return a client and its id."""
    client = mlflow.MlflowClient(store_uri)
    return client, client.create_experiment("autogen_team", artifact_location=Path("artifacts").absolute().as_uri())


@pytest.fixture
def web_server():
    """Return a function that starts a server with some headers; it answers `/version` and `/health` only."""
    servers = []

    def start(version=200, text=b"3.17.2", **headers):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status = {"/health": 200, "/version": version}.get(self.path, 404)
                body = text if status == 200 else b"no such page"
                self.send_response_only(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def outcomes(checks):
    """Return the outcome of each check."""
    return {name: check["outcome"] for name, check in checks.items()}


def files():
    """Return every file and folder below the working folder and of the state."""
    return sorted(str(path) for path in Path("..").rglob("*"))


def test_a_store_that_works_is_ok_and_nothing_is_left(experiment, examine):
    """No run, not even a deleted one, no experiment, no file."""
    client, experiment_id = experiment
    before = files()

    status, checks = examine()

    assert status == 0
    assert outcomes(checks) == {
        **dict.fromkeys(["tracking", "registry", "experiment", "runs", "artifacts", "clock"], "ok"),
        **dict.fromkeys(["state folder", "log sink"], "ok"),
        "desktop": "note",
    }
    assert "nothing of it remains" in checks["runs"]["found"]
    assert files() == before
    assert client.search_runs([experiment_id, "0"], run_view_type=ViewType.ALL) == []
    names = {found.name for found in client.search_experiments(view_type=ViewType.ALL)}
    assert names == {"Default", "autogen_team"}


def test_an_experiment_that_is_not_there_is_not_made(store_uri, examine):
    """The run is tried out in MLflow's own experiment."""
    client = mlflow.MlflowClient(store_uri)

    status, checks = examine("--experiment", "digits")

    assert status == 0
    assert checks["experiment"]["outcome"] == "note"
    assert "'digits' is not there yet" in checks["experiment"]["found"]
    assert "in the experiment 'Default'" in checks["runs"]["found"]
    assert client.get_experiment_by_name("digits") is None
    assert client.search_runs(["0"], run_view_type=ViewType.ALL) == []


def test_a_store_that_is_not_there_is_not_made(examine):
    """Nor anything else."""
    before = files()

    status, checks = examine()

    assert status == 0
    assert checks["tracking"]["outcome"] == "note"
    assert "the first run makes it" in checks["tracking"]["found"]
    assert checks["runs"]["found"] == "skipped: there is no tracking store yet"
    assert files() == before


def test_a_folder_is_a_store_too(examine, monkeypatch):
    """With a word about its future; of the run nothing remains."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(Path("mlruns").absolute().as_uri())
    client.create_experiment("autogen_team")
    before = files()

    status, checks = examine(MLFLOW_TRACKING_URI=Path("mlruns").absolute().as_uri())

    assert status == 0
    assert outcomes(checks)["tracking"] == "note"
    assert {checks[name]["outcome"] for name in ("registry", "runs", "artifacts")} == {"ok"}
    assert files() == before


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
    _, checks = examine("--tracking-uri", web_server(Date=formatdate(time() + seconds, usegmt=True)))

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
    assert checks["runs"]["found"] == "skipped: the tracking server does not let you in"


def test_a_server_that_does_not_tell_its_version_is_a_note(web_server, examine):
    """An old one, or a proxy in between."""
    _, checks = examine("--tracking-uri", web_server(version=404))

    assert checks["tracking"]["outcome"] == "note"
    assert "does not tell its version" in checks["tracking"]["found"]


def test_a_server_of_another_major_version_is_a_note(web_server, examine):
    """Both versions are told."""
    _, checks = examine("--tracking-uri", web_server(text=b"2.22.0"))

    assert checks["tracking"]["outcome"] == "note"
    assert f"MLflow 2.22.0, and here it is {mlflow.__version__}" in checks["tracking"]["found"]


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


def test_a_state_folder_that_cannot_be_written_fails(tmp_path, examine):
    """Here it is a file."""
    path = tmp_path / "file"
    path.touch()

    status, checks = examine(AUTOGEN_TEAM_STATE_DIR=str(path))

    assert (status, checks["state folder"]["outcome"]) == (1, "fail")
    assert "AUTOGEN_TEAM_STATE_DIR" in checks["state folder"]["remedy"]


def test_a_state_folder_that_others_can_read_is_a_note(tmp_path, examine):
    """With the command that closes it; it is not closed behind anybody's back."""
    path = tmp_path / "state"
    path.mkdir()
    path.chmod(0o755)

    status, checks = examine()

    assert (status, checks["state folder"]["outcome"]) == (0, "note")
    assert "mode 0755" in checks["state folder"]["found"]
    assert checks["state folder"]["remedy"] == f"chmod 700 '{path}'"
    assert path.stat().st_mode & 0o777 == 0o755


def test_what_waits_is_counted(free_port, run_python, examine):
    """Of a job that has worked offline."""
    job = (
        "from autogen_team.io.services import MlflowService\n"
        "service = MlflowService(autolog_disable=True, mode='offline')\n"
        "with service, service.run_context(service.RunConfig(name='train', log_system_metrics=False)): pass\n"
    )
    environment = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    status, _, err = run_python("-c", job, **environment)
    assert status == 0, err

    _, checks = examine(**environment)

    assert checks["waiting"]["outcome"] == "note"
    assert "stores of offline runs: 1" in checks["waiting"]["found"]
    assert "autogen-team sync" in checks["waiting"]["remedy"]


def test_a_log_file_is_not_made(examine):
    """Nor its folders, nor those of a rotated one."""
    before = files()

    _, checks = examine("--set", "logger.sink=logs/of/job.log", "--set", "logger.rotation=100 MB")

    assert checks["log sink"]["outcome"] == "ok"
    assert files() == before


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("sink=a_file/job.log", "a_file"),
        ("sink=.", "folder"),
        ("level=LOUD", "LOUD"),
        ("format={nonsense}", "nonsense"),
        ("rotation=1 week", "stderr"),
    ],
)
def test_a_log_that_cannot_be_written_fails(examine, setting, word):
    """And it is said why."""
    Path("a_file").touch()

    status, checks = examine("--set", f"logger.{setting}")

    assert (status, checks["log sink"]["outcome"]) == (1, "fail")
    assert word in checks["log sink"]["found"]


def test_a_wrong_rotation_is_told_by_the_name_of_the_log(examine):
    """Not by that of the file on which it was tried out."""
    _, checks = examine("--set", "logger.sink=job.log", "--set", "logger.rotation=now and then")

    assert checks["log sink"]["outcome"] == "fail"
    assert "'job.log'" in checks["log sink"]["found"]


def test_channels_are_reached_and_nothing_is_sent(free_port, examine):
    """One that listens, one that does not, one of which nobody can know."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        urls = [f"json://127.0.0.1:{listener.getsockname()[1]}/x", f"error=json://127.0.0.1:{free_port()}/x"]

        status, checks = examine(AUTOGEN_TEAM_ALERTS_URLS=" ".join([*urls, "rsyslog://127.0.0.1"]))

        with listener.accept()[0] as connection:
            said = connection.recv(1)
    alive, dead, unknown = (check for name, check in checks.items() if name.startswith("alerts to"))
    assert (status, said) == (1, b"")
    assert (alive["outcome"], dead["outcome"], unknown["outcome"]) == ("ok", "fail", "note")
    assert "for error only" in dead["found"]
    assert "not checked" in unknown["found"]


def test_a_channel_that_there_is_none_of_fails(examine):
    """Without its secret."""
    status, checks = examine(AUTOGEN_TEAM_ALERTS_URLS="nonsense://secret-token/x")

    assert (status, checks["alerts"]["outcome"]) == (1, "fail")
    assert "secret-token" not in str(checks)


def test_a_desktop_that_is_not_there_is_no_failure(examine):
    """Nor is it one that alerts are disabled."""
    status, checks = examine()
    assert (status, checks["desktop"]["outcome"]) == (0, "note")
    assert "printed on stdout" in checks["desktop"]["found"]

    _, checks = examine("--set", "alerts.enable=false")
    assert checks["alerts"]["outcome"] == "ok"
    assert "desktop" not in checks


def test_secrets_are_masked(free_port, run_python):
    """In the table and in JSON, in settings and in what was found."""
    port = free_port()
    options = ("--set", f"alerts.urls=json://bob:hunter2-of-alerts@127.0.0.1:{port}/secret-path")
    Path(".env").write_text(f"MLFLOW_TRACKING_URI=http://bob:hunter2-of-runs@127.0.0.1:{port}\n")

    for form in ([], ["--json"]):
        status, out, err = run_python(*DOCTOR, *options, *form, **NO_DESKTOP)

        assert status == 1, err
        assert f"http://bob:***@127.0.0.1:{port}" in out
        assert "hunter2" not in out + err
        assert "secret-path" not in out + err


def test_the_table_has_versions_changed_settings_and_checks(run_python):
    """And JSON has all settings."""
    environment = {**NO_DESKTOP, "AUTOGEN_TEAM_LOGGER_LEVEL": "DEBUG"}

    status, out, err = run_python(*DOCTOR, **environment)

    versions, settings, checks = out.split("\n\n")
    assert (status, err) == (0, "")
    assert "\nautogen-team " in versions
    assert f"\nmlflow-skinny      {mlflow.__version__}\n" in versions
    assert ["logger.level", "DEBUG", "environment"] in [line.split() for line in settings.splitlines()]
    assert "alerts.app_name" not in settings
    assert checks.splitlines()[0].split() == ["check", "result", "found", "what", "to", "do"]

    report = json.loads(run_python(*DOCTOR, "--json", **environment)[1])
    assert {"alerts.app_name", "logger.level"} <= {setting["name"] for setting in report["settings"]}


def test_a_variable_that_nothing_reads_is_a_note(run_python):
    """In the table, to be pasted with the rest."""
    status, out, err = run_python(*DOCTOR, AUTOGEN_TEAM_ALERT_TIMEOUT="3", **NO_DESKTOP)

    assert (status, err) == (0, "")
    assert "did you mean AUTOGEN_TEAM_ALERTS_TIMEOUT?" in out


def test_a_wrong_setting_is_one_line_and_status_2(run_python):
    """As with every command."""
    status, out, err = run_python(*DOCTOR, AUTOGEN_TEAM_ALERTS_TIMEOUT="soon")

    assert (status, out) == (2, "")
    assert err.startswith("error: AUTOGEN_TEAM_ALERTS_TIMEOUT is 'soon' (environment): ")
    assert len(err.splitlines()) == 1


def test_mlflow_is_not_loaded_for_a_server_that_is_dead(free_port, run_python):
    """Who has nothing to ask does not wait for it."""
    code = (
        "import sys; from autogen_team.cli import main\n"
        "sys.argv = ['autogen-team', 'doctor', '--json']\n"
        "try: main()\n"
        "except SystemExit: print('mlflow' in sys.modules, file=sys.stderr)\n"
    )
    _, _, err = run_python("-c", code, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}", **NO_DESKTOP)

    assert err.strip() == "False"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Reach loopback directly, whatever the machine says about proxies."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
