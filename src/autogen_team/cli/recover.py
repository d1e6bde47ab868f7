"""`autogen-team recover`: deliver the journals of dead processes, and close the runs of lost machines."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from autogen_team._process.folders import state_folder
from autogen_team.cli import _context, _look

if TYPE_CHECKING:
    from autogen_team._ship import recovery
    from autogen_team._spool import index

__all__ = ["close_lost", "recover"]

_FAILED = 1


def recover(overrides: Mapping[str, str], *, hosts: Collection[str], dry_run: bool, as_json: bool) -> None:
    """Recover the journals of dead processes of this machine and of the hosts; with `dry_run`, only print them.

    Exits with 1 if a journal could not be recovered.
    """
    from autogen_team._ship import lean_mlflow
    from autogen_team._spool import index

    with _look.plain_warnings(), _look.plain_errors():
        service = _context.build(overrides).mlflow_service
        state = state_folder(service.state_dir)
    if dry_run:
        found = index.find(state, hosts)
        if as_json:
            _look.as_json([asdict(one) for one in found])
        elif found:
            _look.table(("run", "host", "pid", "last write", "what would be done", "why"), map(_plan, found))
        else:
            _say_none()
        return
    with _look.plain_warnings(), _look.plain_errors():
        lean_mlflow.load(service.tracking_uri)
        results = [result for _, result in service.recover(hosts)]
    if as_json:
        _look.as_json([asdict(result) for result in results])
    elif results:
        columns = ("journal", "entries delivered", "refused", "runs closed as KILLED", "problem")
        _look.table(columns, map(_row, results))
    else:
        _say_none()
    if any(result.problem for result in results):
        raise SystemExit(_FAILED)


def close_lost(
    overrides: Mapping[str, str],
    *,
    limit: float,
    experiment: str | None,
    takes_all: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Close the runs of the store that had no heartbeat for `limit` seconds; with `dry_run`, only print them.

    Runs that never had a heartbeat are skipped, or with `takes_all` judged by their newest metric or their start.
    """
    from autogen_team._ship import lean_mlflow, uris

    with _look.plain_warnings(), _look.plain_errors():
        service = _context.build(overrides).mlflow_service
        lean_mlflow.load(service.tracking_uri)
        from autogen_team._ship import lost

        store = lost.Store(uris.absolute(service.tracking_uri), service.connect_timeout)
        found = [one for one in store.running(experiment) if takes_all or one.sign is not None]
        now = store.now(found[0]) if found else 0.0
        stale = [one for one in found if now - one.latest > limit]
        closed = [one for one in stale if dry_run or store.close(one)]
    if as_json:
        _look.as_json([{**asdict(one), "reason": one.reason} for one in closed])
    elif closed:
        what = "would be closed as KILLED" if dry_run else "closed as KILLED"
        rows = [(one.name, one.run_id, one.experiment, one.reason) for one in closed]
        _look.table((what, "id", "experiment", "why"), rows)
    else:
        message = f"none of the {len(found)} RUNNING runs is stale" if found else "none are RUNNING"
        _look.say("runs", message, "bold")


def _say_none() -> None:
    _look.say("journals", "none left by dead processes", "bold")


def _plan(found: index.Found) -> tuple[str, ...]:
    runs = [run.name or run.run_id for run in found.open_runs] or list(found.run_ids)
    action = "nothing"
    if found.state == "dead":
        closing = f", close {len(found.open_runs)} as KILLED" if found.open_runs else ""
        action = f"deliver {found.waits}{closing}"
    age = _look.age(time.time() - found.last_write)
    return ", ".join(runs) or "-", found.host, str(found.pid), f"{age} ago", action, found.evidence


def _row(result: recovery.Recovered) -> tuple[str, ...]:
    closed = ", ".join(result.closed) or "-"
    if result.by_others:
        return result.folder.name, "by another process", "-", "-", "-"
    return result.folder.name, str(result.delivered + result.files), str(result.refused), closed, result.problem or "-"
