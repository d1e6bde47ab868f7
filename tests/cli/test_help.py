"""Golden files of help texts; `UPDATE_GOLDEN=1 pytest tests/cli/test_help.py` rewrites them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer

from autogen_team._services import settings
from autogen_team.cli._app import app

CODE = "import sys; from autogen_team.cli import main; sys.argv[0] = 'autogen-team'; main()"
GOLDEN = Path(__file__).parent / "golden"
UPDATES = bool(os.environ.get("UPDATE_GOLDEN"))  # read here, because tests run without this variable
COMMANDS = sorted(typer.main.get_command(app).commands)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_equals_the_golden_file(run_python, command):
    """A change of the command line is visible in a review."""
    plain = {
        "COLUMNS": "100",
        "TERMINAL_WIDTH": "100",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "_TYPER_FORCE_DISABLE_TERMINAL": "1",
    }
    status, out, err = run_python("-c", CODE, *filter(None, [command]), "--help", **plain)
    assert (status, err) == (0, "")
    text = "".join(f"{line.rstrip()}\n" for line in out.splitlines())
    path = GOLDEN / f"{command or 'autogen-team'}.txt"
    if UPDATES:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    assert text == path.read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    """The example can be copied."""
    text = typer.main.get_command(app).commands[command].help

    assert "Example: " in text
    assert f"autogen-team {command}" in text.split("Example: ")[1]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "run"])
def test_each_command_has_machine_readable_output(command):
    """Each command has `--json`."""
    options = [name for parameter in typer.main.get_command(app).commands[command].params for name in parameter.opts]

    assert "--json" in options


def test_help_imports_nothing_slow(run_python):
    """Shell completion calls the command at each key press."""
    code = (
        "import sys, runpy; sys.argv = ['autogen-team', '--help']\n"
        "try: runpy.run_module('autogen_team', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('mlflow', 'pydantic', 'loguru', 'sqlalchemy') if name in sys.modules])\n"
    )

    assert run_python("-c", code, fresh=True)[1].splitlines()[-1] == "[]"


def test_the_variables_of_options_are_registered():
    """Otherwise each job would warn of unknown variables."""
    run = typer.main.get_command(app).commands["run"]
    named = {option.envvar for option in run.params if (option.envvar or "").startswith(f"{settings.PREFIX}RUN_")}

    assert named == settings.OF_RUN
