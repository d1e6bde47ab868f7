"""`autogen-team run`: run any job under supervision."""

from __future__ import annotations

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
    overrides: Mapping[str, str],
) -> NoReturn:
    """Run the command under supervision, and exit as it does."""
    order = Order(
        list(command), is_command, name, description, list(tags), dict(overrides), keep_output, system_metrics
    )
    from autogen_team.cli._supervisor.supervise import supervise

    supervise(order)
