"""Watching a job for silence: the limits and the alert settings that the agent gets."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from autogen_team._ship import agent_link, watched
from autogen_team._ship.watched import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from autogen_team._services.alerts import AlertsService


def watch(alerts: AlertsService, state: Path, after: float, *, kills: bool) -> Callable[[], None]:
    """Watch this process, until the returned function is called.

    Args:
        alerts: the service whose settings are used for alerts.
        state: the state folder.
        after: seconds of silence.
        kills: whether the job is ended after a second such time.

    """
    with ExitStack() as undo:
        undo.callback(agent_link.give(alerts.environment() | alerts.secrets()))
        undo.callback(watched.start(state, Limits(after, kills)))
        return undo.pop_all().close
