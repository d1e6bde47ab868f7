"""`autogen-team run`: run any job under supervision."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from autogen_team.cli._supervisor.wire import Order

__all__ = ["run"]


def run(
    command: Sequence[str],
    *,
    is_command: bool,
    name: str | None,
    description: str | None,
    tags: Sequence[str],
    keep_output: bool,
    system_metrics: bool,
    require_clean: bool,
    overrides: Mapping[str, str],
) -> NoReturn:
    """Run the command under supervision, and exit as it does."""
    if require_clean:
        from autogen_team.cli import _clean

        _clean.require(None if is_command or command[0] == "-m" else command[0])
    order = Order(
        list(command),
        is_command,
        name,
        description,
        list(tags),
        dict(overrides),
        keep_output,
        system_metrics,
        sys.argv[1:],
    )
    from autogen_team.cli._supervisor.supervise import supervise

    supervise(order)
