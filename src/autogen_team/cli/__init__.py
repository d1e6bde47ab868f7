"""The command line: `autogen-team`."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command that `sys.argv` names, and exit with its status."""
    from autogen_team.cli._app import app

    app()
