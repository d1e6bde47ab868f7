"""Write `docs/reference/cli.md` with all commands, arguments and options: `make readme`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from autogen_team.cli._app import app

PAGE = Path(__file__).parent / "reference" / "cli.md"
HEAD = """\
# The command line

<!-- written by `make readme` -->

Every command has `--help`. Output is a table on a terminal, plain lines in a pipe, and JSON with `--json`.
`autogen-team --version` prints the version; `autogen-team --install-completion` installs completion for your shell.
"""


def page() -> str:
    """Return the text of the page."""
    root: Any = typer.main.get_command(app)
    lines = [line for name, command in root.commands.items() for line in _command(name, command)]
    return "\n".join([HEAD, *lines])


def _command(name: str, command: Any) -> Iterator[str]:
    description, _, example = command.help.partition("Example: ")
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    usage = " ".join(["autogen-team", name, "[OPTIONS]", *map(_usage, arguments)])
    yield f"## autogen-team {name}\n"
    yield f"{description.strip()}\n"
    yield f"```text\n{usage}\n```\n"
    yield "| argument or option | meaning |\n|---|---|"
    for one in arguments:
        yield f"| `{_usage(one)}` | {one.help} |"
    for one in options:
        variable = f" Variable: `{one.envvar}`." if one.envvar else ""
        yield f"| {_flags(one)} | {one.help}{variable} |"
    yield f"\nExample:\n\n```console\n$ {example.strip()}\n```\n"


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()) + (" [ARGS]..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _flags(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or 'VALUE'}"
    return ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts]) + value


if __name__ == "__main__":
    PAGE.write_text(page())
