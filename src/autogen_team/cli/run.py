"""`autogen-team run`: run any job under supervision."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from autogen_team.cli._supervisor import target
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
    job: str | None,
    stale: float,
    overrides: Mapping[str, str],
) -> NoReturn:
    """Run the command under supervision, and exit with its status."""
    order = Order(
        command=list(command),
        is_command=is_command,
        name=name,
        description=description,
        tags=list(tags),
        overrides=dict(overrides),
        is_kept=keep_output,
        system_metrics=system_metrics,
        words=sys.argv[1:],
        job=job,
        stale=stale,
    )
    if require_clean:
        from autogen_team.cli import _clean

        _clean.require(target.script(order))
    from autogen_team.cli._supervisor.supervise import supervise

    supervise(order)
