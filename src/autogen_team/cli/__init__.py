"""The command line: `autogen-team`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command in `sys.argv`, and exit with its status."""
    if sys.argv[1:2] == ["run"] and not {"-h", "--help"} & set(sys.argv[2:3]):
        from autogen_team.cli._supervisor import keeping

        keeping.start()
    from autogen_team.cli._app import app

    app()
