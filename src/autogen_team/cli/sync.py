"""`autogen-team sync`: deliver the data waiting on this machine to its server."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from autogen_team._process.folders import state_folder
from autogen_team._redact import mask_url
from autogen_team._sync.outcomes import Outcome, Registered
from autogen_team.cli import _context, _look
from autogen_team.errors import ConfigurationError
from autogen_team.io.services import MlflowService

if TYPE_CHECKING:
    from autogen_team._ship.recovery import Recovered
    from autogen_team._spool.index import Found
    from autogen_team._sync.outcomes import Progress

__all__ = ["sync"]

_FAILED = 1
_SCHEMES = ("databricks", "databricks-uc", "file", "http", "https", "mssql", "mysql", "postgresql", "sqlite", "uc")
"""Schemes of the URIs of MLflow's own stores; plugins add others."""
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(?:/|\Z)")


def sync(
    source: str | None,
    overrides: Mapping[str, str],
    *,
    to: str | None,
    dry_run: bool,
    delete: bool,
    as_json: bool,
) -> None:
    """Deliver the journals of dead processes and copy the runs of local stores; with `dry_run`, only print the plan.

    Exits with 1 if a journal or a run could not be delivered.
    """
    with _look.plain_warnings(), _look.plain_errors():
        usual = _context.build(overrides).mlflow_service
        place = None if to is None else _uri(to)
        service = usual if place is None else usual.model_copy(update={"tracking_uri": place, "registry_uri": place})
        # A journal is delivered to the store of its process; `--to` applies only to copied runs.
        stores = _stores(source, usual, is_elsewhere=to is not None)
        recovered = [] if source else list(_journals(usual, dry_run=dry_run))
        results: list[Outcome | Registered] = []
        with _progress() as show:
            for store in stores:
                results += service.copy_from(store, dry_run=dry_run, delete=delete, progress=show)
        left = [] if source else list(_left(state_folder(usual.state_dir), stores))
    outcomes = [one for one in results if isinstance(one, Outcome)]
    registered = [one for one in results if isinstance(one, Registered)]
    if as_json:
        rows = {"runs": [asdict(one) for one in outcomes], "registered": [asdict(one) for one in registered]}
        _look.as_json({"journals": recovered, **rows, "left": left})
    else:
        _print(recovered, outcomes, registered, service)
        for one in left:
            _look.say("left", f"{one['what']} for {one['store']}: {one['why']}", "bold")
    if any(one["problem"] for one in recovered) or any(one.happened == "failed" for one in results):
        raise SystemExit(_FAILED)


def _journals(service: MlflowService, *, dry_run: bool) -> Iterator[dict[str, object]]:
    if dry_run:
        from autogen_team._spool import index

        state = state_folder(service.state_dir)
        for found in index.find(state):
            if found.state == "dead":
                yield _row(found, None)
        return
    for found, result in service.recover():
        yield _row(found, result)


def _row(found: Found, result: Recovered | None) -> dict[str, object]:
    return {
        "journal": found.folder.name,
        "store": found.uri,
        "entries": found.waiting if result is None else result.delivered,
        "files": found.files if result is None else result.files,
        "happened": "would be delivered" if result is None else "failed" if result.problem else "delivered",
        "problem": "" if result is None else result.problem,
    }


def _left(state: Path, stores: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the data that still waits on this machine, and the reason."""
    from autogen_team._spool import index
    from autogen_team._sync import offline_store

    for store, destination in offline_store.find(state).items():
        if store not in stores:
            why = f"set MLFLOW_TRACKING_URI to it, or copy them elsewhere: autogen-team sync {store} --to URI"
            yield {"what": "offline runs", "store": destination, "why": why}
    for found in index.find(state):
        if found.state != "dead" and (found.waiting or found.files):
            yield {"what": f"{found.waits} of a journal", "store": found.uri, "why": found.evidence}


def _stores(source: str | None, service: MlflowService, *, is_elsewhere: bool) -> list[str]:
    """Return the URIs of the stores to copy: the source or, without a source, the stores of offline runs.

    With `is_elsewhere`, all offline runs are copied, otherwise only those that are meant for the service's store.
    """
    from autogen_team._sync import offline_store

    if source is None:
        state = state_folder(service.state_dir)
        if is_elsewhere:
            return list(offline_store.find(state))
        store = offline_store.existing_store(state, service.stores()[0])
        return [store] if store else []
    if not _is_uri(source) and not Path(source).expanduser().exists():
        raise ConfigurationError(
            f"there is no store {source!r} in {Path.cwd()}: give a database file, or a folder such as mlruns"
        )
    return [_uri(source)]


def _is_uri(store: str) -> bool:
    return "://" in store or store.startswith("file:")


def _uri(store: str) -> str:
    """Return the URI of a store given as a URI, or as the path of a folder or a database file."""
    if _is_uri(store):
        _require_scheme(store)
        return store
    path = Path(store).expanduser().absolute()
    if _HOST_AND_PORT.match(store) and not path.exists():
        raise ConfigurationError(f"{store!r} is not a URI: write http:// in front of it")
    return path.as_uri() if path.is_dir() else f"sqlite:///{path}"


def _require_scheme(uri: str) -> None:
    scheme = uri.partition(":")[0].lower()
    known = {*_SCHEMES, *(found.name for found in entry_points(group="mlflow.tracking_store"))}
    if scheme.partition("+")[0] not in known:
        near = difflib.get_close_matches(scheme, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigurationError(
            f"{mask_url(uri)} has the unknown scheme {scheme!r}; {hint}MLflow knows {', '.join(sorted(known))}"
        )


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Draw a progress bar if stderr is a terminal."""
    console = _look.console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("runs"))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("looking", total=None)

        def show(now: Progress) -> None:
            bar.update(task, completed=now.done, total=now.total, description=f"{now.run_name} {now.part}".strip())

        yield show


def _print(
    recovered: list[dict[str, object]], outcomes: list[Outcome], registered: list[Registered], service: MlflowService
) -> None:
    if recovered:
        _look.table(tuple(recovered[0]), [tuple(str(cell) for cell in row.values()) for row in recovered])
    if outcomes:
        numbers = ("points", "params", "tags", "artifacts", "models", "traces")
        _look.table(("experiment", "run", "what happened", *numbers, "as", "why"), map(_cells, outcomes))
    if registered:
        _look.table(("registered", "what happened", "versions", "why"), map(_registered_cells, registered))
    if not recovered and not outcomes and not registered:
        _look.say("sync", f"nothing waits for {mask_url(service.tracking_uri)}", "bold")


def _cells(outcome: Outcome) -> tuple[str, ...]:
    counts = outcome.counts
    numbers = (counts.metrics, counts.params, counts.tags, counts.artifacts, counts.models, counts.traces)
    happened = f"{outcome.happened}, deleted here" if outcome.is_deleted else outcome.happened
    return (
        outcome.experiment or "-",
        outcome.run_name or "-",
        happened,
        *(str(number) if number else "-" for number in numbers),
        outcome.target_id or "-",
        outcome.reason or "-",
    )


def _registered_cells(registered: Registered) -> tuple[str, ...]:
    versions = [here if there is None else f"{here} as {there}" for here, there in registered.versions.items()]
    return (
        f"{registered.kind} {registered.name}",
        registered.happened,
        ", ".join(versions) or "-",
        registered.reason or "-",
    )
