"""Desktops of macOS and Windows, with stand-ins for their commands: what they receive, and how they can fail."""

import json
import os
import sys
from pathlib import Path

import pytest

from autogen_team._alerts.channel import Alert, NoAnswerError, UndeliveredError
from autogen_team._alerts.commands import CommandDesktop
from autogen_team._alerts.dbus import DBusDesktop
from autogen_team._alerts.desktop import desktop

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-ins are scripts with a #! line")

COMMANDS = {"darwin": "osascript", "win32": "powershell.exe"}
HOSTILE = "x\" with title \"y\n`$(touch owned)` & 'quotes' <toast/>"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Return a function that replaces a system's command with a Python program."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def stand_in(system, code):
        program = folder / COMMANDS[system]
        program.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{code}\n")
        program.chmod(0o700)

    return stand_in


def test_macos_gets_the_texts_as_arguments(stand_in):
    """The script is constant; title and message are arguments, so they cannot become code."""
    stand_in("darwin", "json.dump(sys.argv[1:], open('said', 'w'))")
    CommandDesktop("my job", system="darwin").deliver(Alert("-h", HOSTILE))
    said = json.loads(Path("said").read_text())
    assert said[said.index("--") + 1 :] == ["-h", HOSTILE, "my job"]
    assert not any(HOSTILE in part or "my job" in part for part in said[: said.index("--")])


def test_windows_gets_the_texts_as_variables(stand_in):
    """The script is constant and reads title and message from environment variables."""
    stand_in("win32", "json.dump([sys.argv[1:], dict(os.environ)], open('said', 'w'))")
    CommandDesktop("my job", system="win32").deliver(Alert("done", HOSTILE))
    arguments, environment = json.loads(Path("said").read_text())
    assert environment["AUTOGEN_TEAM_ALERT_TITLE"] == "my job: done"
    assert environment["AUTOGEN_TEAM_ALERT_MESSAGE"] == HOSTILE
    assert not any(HOSTILE in part or "my job" in part for part in arguments)


@pytest.mark.parametrize("system", COMMANDS)
def test_a_command_that_fails_is_quoted(stand_in, system):
    """The reason contains the command's exit status and output."""
    stand_in(system, "sys.exit('execution error:\\nnot allowed')")
    with pytest.raises(UndeliveredError, match="failed with status 1: execution error: not allowed"):
        CommandDesktop("my job", system=system).deliver(Alert("done", ""))


@pytest.mark.parametrize("system", COMMANDS)
def test_a_command_that_hangs_is_ended(stand_in, system):
    """The wait for the command is bounded."""
    stand_in(system, "time.sleep(60)")
    with pytest.raises(NoAnswerError, match=r"did not end within 0\.2 s"):
        CommandDesktop("my job", system=system, answer_within=0.2).deliver(Alert("done", ""))


@pytest.mark.parametrize("system", COMMANDS)
def test_a_command_that_is_missing_is_named(monkeypatch, tmp_path, system):
    """If the system lacks the command, the reason names it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    channel = CommandDesktop("my job", system=system)
    with pytest.raises(UndeliveredError, match=f"{COMMANDS[system]} cannot be run: No such file"):
        channel.deliver(Alert("done", ""))
    channel.close()


@pytest.mark.parametrize(
    ("system", "kind"), [("darwin", CommandDesktop), ("win32", CommandDesktop), ("linux", DBusDesktop)]
)
def test_each_system_has_its_own_desktop(system, kind):
    """The platform decides the desktop; all desktops are local and accept each level."""
    channel = desktop("my job", None, system=system)
    assert isinstance(channel, kind)
    assert channel.is_local
    assert channel.takes("info")
