"""`autogen-team doctor`: state, logs, channels, and what it says of all."""

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
    """Here the folder that it would be in is a file."""
    path = tmp_path / "file"
    path.touch()

    status, checks = examine(AUTOGEN_TEAM_STATE_DIR=str(path / "state"))

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


def test_a_log_file_is_not_made(examine, all_files):
    """Nor its folders, nor those of a rotated one."""
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
    assert "alerts are printed" in checks["desktop"]["found"]

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
    _, _, err = run_python("-c", code, fresh=True, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}", **NO_DESKTOP)

    assert err.strip() == "False"


def test_a_free_threaded_python_is_said(monkeypatch):
    """Nothing here is tested with one."""
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: 1 if name == "Py_GIL_DISABLED" else None)

    assert "free-threaded, not tested" in _probes.versions()["python"]
