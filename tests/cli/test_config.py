"""`autogen-team config`."""

from __future__ import annotations

import json
import os
import pty
import sys
from pathlib import Path


def test_each_setting_has_its_variable_its_value_and_its_source(run_python, monkeypatch):
    """An option overrides the environment, then `.env`, then the default."""
    Path(".env").write_text("AUTOGEN_TEAM_LOGGER_SINK=job.log\nAUTOGEN_TEAM_LOGGER_LEVEL=ERROR\n")
    monkeypatch.setenv("AUTOGEN_TEAM_LOGGER_LEVEL", "DEBUG")

    status, out, err = run_python("-m", "autogen_team", "config", "--json", "--experiment", "digits")

    assert (status, err) == (0, "")
    found = {item["name"]: (item["value"], item["source"], item["variable"]) for item in json.loads(out)}
    assert found["mlflow.experiment_name"] == ("digits", "argument", "MLFLOW_EXPERIMENT_NAME")
    assert found["logger.level"] == ("DEBUG", "environment", "AUTOGEN_TEAM_LOGGER_LEVEL")
    assert found["logger.sink"] == ("job.log", ".env", "AUTOGEN_TEAM_LOGGER_SINK")
    assert found["alerts.enable"] == ("True", "default", "AUTOGEN_TEAM_ALERTS_ENABLE")


def test_a_pipe_gets_one_plain_line_a_setting(run_python):
    """Lines suit `grep` and `awk`."""
    _, out, _ = run_python("-m", "autogen_team", "config")

    header, *lines = out.splitlines()
    assert header.split() == ["setting", "value", "from", "variable"]
    assert [line.split() for line in lines if line.startswith("logger.level ")] == [
        ["logger.level", "INFO", "default", "AUTOGEN_TEAM_LOGGER_LEVEL"]
    ]
    assert "\x1b" not in out


def test_secrets_are_masked(run_python):
    """Secrets are masked in every form of output."""
    environment = {"MLFLOW_TRACKING_URI": "http://bob:hunter2@mlflow", "AUTOGEN_TEAM_ALERTS_URLS": "json://hunter2/x"}
    for options in ([], ["--json"]):
        _, out, _ = run_python("-m", "autogen_team", "config", *options, **environment)

        assert "http://bob:***@mlflow" in out
        assert "hunter2" not in out


def test_an_invalid_value_is_one_line_and_status_2(run_python):
    """No traceback is printed."""
    status, out, err = run_python("-m", "autogen_team", "config", AUTOGEN_TEAM_ALERTS_TIMEOUT="soon")

    assert (status, out) == (2, "")
    assert err.startswith("error: AUTOGEN_TEAM_ALERTS_TIMEOUT is 'soon' (environment): ")
    assert len(err.splitlines()) == 1


def test_a_misspelt_variable_is_a_warning(run_python):
    """The warning suggests the nearest valid name."""
    status, _, err = run_python("-m", "autogen_team", "config", AUTOGEN_TEAM_ALERT_TIMEOUT="3")

    assert status == 0
    assert err == (
        "warning: unknown variable AUTOGEN_TEAM_ALERT_TIMEOUT (environment); "
        "did you mean AUTOGEN_TEAM_ALERTS_TIMEOUT?\n"
    )


def test_any_setting_can_be_set_and_a_misspelt_one_is_refused(run_python):
    """`--set` accepts any setting."""
    _, out, _ = run_python("-m", "autogen_team", "config", "--set", "alerts.cooldown=60", "--json")
    assert {item["name"]: item["value"] for item in json.loads(out)}["alerts.cooldown"] == "60.0"

    status, _, err = run_python("-m", "autogen_team", "config", "--set", "alerts.coldown=60")
    assert (status, err) == (2, "error: unknown setting 'alerts.coldown'; did you mean alerts.cooldown?\n")

    status, _, err = run_python("-m", "autogen_team", "config", "--set", "alerts.cooldown")
    assert (status, err) == (2, "error: --set takes KEY=VALUE, not 'alerts.cooldown'\n")


def test_a_terminal_gets_a_table(monkeypatch):
    """The table has rules and colours, and the same content."""
    shown = bytearray()

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 65536)
        shown.extend(data)
        return data

    monkeypatch.setenv("TERM", "xterm-256color")
    status = pty.spawn([sys.executable, "-m", "autogen_team", "config"], read)

    assert os.waitstatus_to_exitcode(status) == 0
    assert b"logger.level" in shown
    assert "─".encode() in shown
