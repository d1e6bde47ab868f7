"""`autogen-team doctor`: state folder, logs, channels, and the report about them."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import mlflow
import pytest

from autogen_team.cli import _probes

DOCTOR = ("-m", "autogen_team", "doctor")
NO_DESKTOP = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere/bus"}


def test_a_state_folder_that_cannot_be_written_fails(tmp_path, examine):
    """A state folder whose parent is a file fails, for example."""
    path = tmp_path / "file"
    path.touch()

    status, checks = examine(AUTOGEN_TEAM_STATE_DIR=str(path / "state"))

    assert (status, checks["state folder"]["outcome"]) == (1, "fail")
    assert "AUTOGEN_TEAM_STATE_DIR" in checks["state folder"]["remedy"]


def test_a_state_folder_that_others_can_read_is_a_note(tmp_path, examine):
    """The note has the command that closes the folder; `doctor` itself does not change its mode."""
    path = tmp_path / "state"
    path.mkdir()
    path.chmod(0o755)

    status, checks = examine()

    assert (status, checks["state folder"]["outcome"]) == (0, "note")
    assert "mode 0755" in checks["state folder"]["found"]
    assert checks["state folder"]["remedy"] == f"chmod 700 '{path}'"
    assert path.stat().st_mode & 0o777 == 0o755


def test_undelivered_runs_are_counted(free_port, run_python, examine):
    """Runs of an offline job are counted, with the command that copies them."""
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


def test_a_log_file_is_not_created(examine, all_files):
    """Neither the log file nor its folders are created, also with rotation."""
    before = all_files()

    _, checks = examine("--set", "logger.sink=logs/of/job.log", "--set", "logger.rotation=100 MB")

    assert checks["log sink"]["outcome"] == "ok"
    assert all_files() == before


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
    """The reason is given."""
    Path("a_file").touch()

    status, checks = examine("--set", f"logger.{setting}")

    assert (status, checks["log sink"]["outcome"]) == (1, "fail")
    assert word in checks["log sink"]["found"]


def test_an_invalid_rotation_is_reported_with_the_name_of_the_log(examine):
    """The error names the log, not the temporary file of the check."""
    _, checks = examine("--set", "logger.sink=job.log", "--set", "logger.rotation=now and then")

    assert checks["log sink"]["outcome"] == "fail"
    assert "'job.log'" in checks["log sink"]["found"]


def test_channels_are_checked_and_nothing_is_sent(free_port, examine):
    """A reachable channel is ok, an unreachable one fails, and an unknown one is a note."""
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


def test_an_unknown_channel_fails(examine):
    """The error does not contain the secret."""
    status, checks = examine(AUTOGEN_TEAM_ALERTS_URLS="nonsense://secret-token/x")

    assert (status, checks["alerts"]["outcome"]) == (1, "fail")
    assert "secret-token" not in str(checks)


def test_a_missing_desktop_is_not_a_failure(examine):
    """Neither a missing desktop nor disabled alerts are a failure."""
    status, checks = examine()
    assert (status, checks["desktop"]["outcome"]) == (0, "note")
    assert "alerts are printed" in checks["desktop"]["found"]

    _, checks = examine("--set", "alerts.enable=false")
    assert checks["alerts"]["outcome"] == "ok"
    assert "desktop" not in checks


def test_secrets_are_masked(free_port, run_python):
    """Secrets are masked in the table and in JSON, in settings and in results."""
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
    """The table has changed settings; JSON has all of them."""
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


def test_an_unknown_variable_is_a_note(run_python):
    """The note is in the table, so that users can paste everything at once."""
    status, out, err = run_python(*DOCTOR, AUTOGEN_TEAM_ALERT_TIMEOUT="3", **NO_DESKTOP)

    assert (status, err) == (0, "")
    assert "did you mean AUTOGEN_TEAM_ALERTS_TIMEOUT?" in out


def test_an_invalid_setting_is_one_line_and_status_2(run_python):
    """As with every command, no traceback is printed."""
    status, out, err = run_python(*DOCTOR, AUTOGEN_TEAM_ALERTS_TIMEOUT="soon")

    assert (status, out) == (2, "")
    assert err.startswith("error: AUTOGEN_TEAM_ALERTS_TIMEOUT is 'soon' (environment): ")
    assert len(err.splitlines()) == 1


def test_mlflow_is_not_imported_for_a_dead_server(free_port, run_python):
    """Without a reachable server, the time for importing MLflow is saved."""
    code = (
        "import sys; from autogen_team.cli import main\n"
        "sys.argv = ['autogen-team', 'doctor', '--json']\n"
        "try: main()\n"
        "except SystemExit: print('mlflow' in sys.modules, file=sys.stderr)\n"
    )
    _, _, err = run_python("-c", code, fresh=True, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}", **NO_DESKTOP)

    assert err.strip() == "False"


def test_a_free_threaded_python_is_reported(monkeypatch):
    """No feature is tested with a free-threaded Python."""
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: 1 if name == "Py_GIL_DISABLED" else None)

    assert "free-threaded, not tested" in _probes.versions()["python"]
