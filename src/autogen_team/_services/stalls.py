"""Watching a job for silence: what the agent is told, whom it alerts, and what happens without an agent."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from autogen_team._process import Undo, activity, stopping
from autogen_team._process.durations import duration
from autogen_team._process.forking import call_in_child
from autogen_team._process.refcount import RefCount
from autogen_team._process.threads import spawn
from autogen_team._ship import agent_link, watched
from autogen_team._ship.silence import Event, Silence
from autogen_team._ship.watched import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from autogen_team._services.alerts import AlertsService

_SHARE, _LONGEST = 0.1, 15.0
"""Without an agent, the job looks for silence after this share of the limit, but in so many seconds at most."""

_report = logging.getLogger("autogen_team")


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
        undo.callback(_substitute.take(alerts, state, after))
        return undo.pop_all().close


class _Substitute:
    """A thread that watches the runs of this process as long as no agent does, for example because none can be started.

    It cannot work while C code holds the interpreter.
    """

    def __init__(self, alerts: AlertsService, state: Path, after: float) -> None:
        self._alerts = alerts
        self._state = state
        self._place = agent_link.place_of(state)
        self._every = max(1.0, min(_SHARE * after, _LONGEST))
        self._end = threading.Event()
        spawn(self._run, name="autogen_team-silence")

    def stop(self) -> None:
        """End the thread."""
        self._end.set()

    def _run(self) -> None:
        silence: Silence | None = None
        while not self._end.wait(self._every):
            try:
                if self._is_agent_there():
                    silence = None
                    continue
                silence = silence or Silence(self._place)
                for event in silence.look():
                    if event.owner.pid == os.getpid():
                        self._take_note(event)
            except Exception:
                with activity.unnoticed():
                    _report.exception("the silence of this job could not be reported")

    def _is_agent_there(self) -> bool:
        try:
            agent_link.connect(self._place).close()
        except OSError:
            return False
        return True

    def _take_note(self, event: Event) -> None:
        from autogen_team._capture import write_behind
        from autogen_team._services import stall_report

        owner, lasted = event.owner, duration(event.lasted)
        if event.kind == "over":
            if owner.kills:
                stopping.end_job(f"silent for {lasted}", kills=True)
            return
        if event.kind == "silent":
            with activity.unnoticed():
                text = "nothing was logged or printed for %s; the stacks of all threads go to stalls/ of the run"
                _report.warning(text, lasted)
        folders = [str(process.folder) for process in event.processes]
        uri = write_behind.open_runs().get(owner.run)
        if uri is not None:
            stall_report.tell(event.kind, owner, event.lasted, event.number, folders, self._state, self._alerts, uri)


def _start_substitute(alerts: AlertsService, state: Path, after: float) -> Undo:
    return _Substitute(alerts, state, after).stop


def _after_fork() -> None:
    global _substitute
    _substitute = RefCount(_start_substitute)


_substitute = RefCount(_start_substitute)
"""Several contexts of a process have one."""
call_in_child(_after_fork)
