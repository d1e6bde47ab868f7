"""What the supervisor does when its child has died without closing its run: close the run and send the alert."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from autogen_team._capture import signals
from autogen_team._process import identity, run_events, streams
from autogen_team.cli import _look

if TYPE_CHECKING:
    from autogen_team._process.run_events import Status
    from autogen_team._spool.index import Found
    from autogen_team.cli._supervisor.wire import OpenRun, Order

_PATIENCE = 60.0
"""Seconds that closing the run may take; if the server is down for longer, the agent waits for it."""


Left: TypeAlias = "list[tuple[Found, int | None]]"
"""The journals that the child has left, each with its lock; the lock is None if another process holds it."""


@dataclass(frozen=True, slots=True)
class Death:
    """How the child has ended."""

    status: int
    """Its exit status, or the negative number of the signal that killed it."""
    run: OpenRun | None
    """The run that it had open; None if it died before it had one."""
    at: float
    """Seconds since 1970."""
    pid: int
    order: Order
    lacked_memory: bool
    """Whether the kernel has killed any process for lack of memory while the child ran."""
    left: Left = field(default_factory=list)
    """The journals that have been taken over already."""

    @property
    def reason(self) -> str:
        """Why the child has ended, in a few words."""
        if self.status >= 0:
            return f"exit status {self.status} without closing its run"
        name = signals.signal_name(-self.status)
        is_for_memory = self.lacked_memory and -self.status == signal.SIGKILL
        return (
            f"{name}, perhaps for lack of memory, for which the kernel has killed meanwhile" if is_for_memory else name
        )

    @property
    def verdict(self) -> Status:
        """The status to close the run with."""
        if self.status < 0:
            return "KILLED"
        return "FAILED" if self.status else "FINISHED"


def kills_for_memory() -> int:
    """Return how many processes the kernel has killed so far for lack of memory; 0 if it does not count them."""
    with suppress(OSError, ValueError, StopIteration), Path("/proc/vmstat").open() as counters:
        return int(next(line for line in counters if line.startswith("oom_kill ")).split()[1])
    return 0


def take_over(run: OpenRun, pid: int) -> Left:
    """Take the locks of the child's journals, so that the agent, which knows less, leaves them to the supervisor.

    Journals for other stores than that of the run are left to the agent, which has their URI with its password.
    """
    from autogen_team._redact import mask_url
    from autogen_team._ship import uris
    from autogen_team._spool import index, journal

    store = uris.identity(mask_url(run.tracking_uri))
    journals = journal.folder_of(Path(run.state)).glob(f"{identity.process_name(pid)}-*")
    found = [one for folder in journals if (one := index.look(folder)) and one.state == "dead"]
    found = [one for one in found if uris.identity(one.uri) == store]
    return [(one, journal.take_over(one.folder)) for one in found]


def settle(death: Death) -> None:
    """Deliver the journals of the child, close its run, send the alert, and print what was done."""
    if death.order.is_command and death.status < 0:
        with suppress(ProcessLookupError):  # the command has lost its parent
            os.killpg(death.pid, signal.SIGTERM)
    run = death.run
    if run is None:
        if death.status < 0:
            _look.say("error", f"the job was killed by {death.reason} before it had a run", "bold red")
        return
    if death.status < 0:
        _look.say("error", f"the job was killed by {death.reason}", "bold red")
    from autogen_team._process.deadline import within

    try:
        has_closed: bool | None = within(_PATIENCE, partial(_close, death, run), name="autogen-team-aftermath")
    except Exception as error:
        from autogen_team._redact import mask

        hint = "if its journal waits (autogen-team status), autogen-team recover closes it"
        _look.say("error", f"run {run.run_id} could not be closed: {mask(str(error))}; {hint}", "bold red")
        has_closed = None
    if has_closed:
        _look.say("run", f"{run.name} {death.verdict}: {death.reason}", "bold")
    if has_closed or has_closed is None:  # None: it is not known whether the run is closed, so send the alert too
        with _look.plain_warnings(), suppress(Exception):
            _alert(death, run)
    _look.say("run", f"{run.name} {run.shown}", "bold")


def _close(death: Death, run: OpenRun) -> bool:
    """Close the run, and return whether it was open."""
    left = death.left or take_over(run, death.pid)
    # By default, MLflow would try for four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from autogen_team._ship import recovery

    end = recovery.Cause(death.reason, death.verdict, death.at)
    stores = run.tracking_uri, run.registry_uri
    state = Path(run.state)
    for found, lock in left:
        result = recovery.recover(found, *stores, state, end=end, lock=lock)
        if result.problem:
            raise RuntimeError(result.problem)
        if run.run_id in result.closed:
            return True
    return recovery.close_run(*stores, state, run.run_id, end)


def _alert(death: Death, run: OpenRun) -> None:
    from autogen_team.cli import _context

    os.environ[streams.SUPERVISED] = "1"
    context = _context.build(death.order.overrides)
    if context.alert_on == "never":
        return
    told = run_events.Run(run.run_id, run.name, run.experiment, run.link, lambda *_: None, run.parent_id)
    with context.alerts_service as alerts:
        unsubscribe = alerts.report_runs(context.alert_on)
        run_events.run_ended(told, run_events.End(death.verdict, death.reason, None, death.at - run.started))
        unsubscribe()
