"""`autogen-team status`: journals waiting on this machine, and RUNNING runs in the store."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from autogen_team._process.folders import state_folder
from autogen_team._services.state import StateFolder
from autogen_team.cli import _context, _look

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autogen_team._ship import lost
    from autogen_team._spool import index

__all__ = ["show", "show_store"]


def show_store(overrides: Mapping[str, str], *, experiment: str | None, as_json: bool) -> None:
    """Print the RUNNING runs of the store, from all machines."""
    from autogen_team._ship import lean_mlflow, uris

    with _look.plain_warnings(), _look.plain_errors():
        service = _context.build(overrides).mlflow_service
        lean_mlflow.load(service.tracking_uri)
        from autogen_team._ship import lost

        found = lost.Store(uris.absolute(service.tracking_uri), service.connect_timeout).running(experiment)
    if as_json:
        _look.as_json([asdict(one) for one in found])
    elif found:
        _look.table(("run", "id", "experiment", "host", "pid", "started", "last heartbeat"), map(_running, found))
    else:
        _look.say("runs", "none are RUNNING", "bold")


def _running(one: lost.Running) -> tuple[str, ...]:
    now = time.time()
    sign = "none" if one.sign is None else f"{_look.age(now - one.sign)} ago"
    return (
        one.name,
        one.run_id,
        one.experiment,
        one.host or "-",
        one.pid or "-",
        f"{_look.age(now - one.started)} ago",
        sign,
    )


def show(*, as_json: bool) -> None:
    """Print the journals of all processes, and the stores of offline runs."""
    from autogen_team._spool import index
    from autogen_team._sync import offline_store

    with _look.plain_errors():
        state = state_folder(StateFolder().state_dir)
    found = index.find(state)
    stores = offline_store.find(state)
    if as_json:
        offline_stores = [{"store": store, "destination": destination} for store, destination in stores.items()]
        _look.as_json({"journals": [asdict(one) for one in found], "offline": offline_stores})
        return
    if found:
        _look.table(("run", "host", "pid", "process", "waiting", "last write", "store"), map(_row, found))
    else:
        _look.say("journals", f"none wait in {state}", "bold")
    if stores:
        _look.table(("offline runs", "meant for"), stores.items())


def _row(found: index.Found) -> tuple[str, ...]:
    names = [f"{run.name or run.run_id} (open)" for run in found.open_runs]
    known = {run.run_id for run in found.open_runs}
    others = [run_id for run_id in found.run_ids if run_id not in known]
    return (
        ", ".join([*names, *others]) or "-",
        found.host,
        str(found.pid),
        found.state,
        found.waits,
        f"{_look.age(time.time() - found.last_write)} ago",
        found.uri,
    )
