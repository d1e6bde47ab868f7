"""Recover the journals of dead processes: deliver their entries and close their runs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from autogen_team._process import run_events
from autogen_team._process.threads import spawn
from autogen_team._redact import MASK, mask, mask_url
from autogen_team._ship import code_files, files, mlflow_backend, ping, signs, stored_sums, uploads, uris
from autogen_team._ship.backend import OPENED_BY, Backend, Batch, Refused, Unreachable
from autogen_team._ship.batches import Delivery
from autogen_team._ship.error_text import with_kind
from autogen_team._ship.owners import Owners
from autogen_team._spool import index, journal, reader
from autogen_team._spool.index import Found
from autogen_team._spool.records import VERSION, Entry

PATIENCE = 900.0
"""Seconds for which the agent retries a journal whose store is down."""
_PAUSE = 10.0
"""Seconds between two attempts."""
_DYING = 2.0
"""Seconds that a process may take to exit after its connection to the agent was closed."""

_SIGNS = frozenset({signs.ALIVE_TAG, signs.HOST_TAG, signs.PID_TAG})
_POLL = 0.2
"""Polling interval in seconds for a journal that another process or thread is recovering."""

_report = logging.getLogger("autogen_team")


@dataclass(slots=True)
class Recovered:
    """The result of recovering one journal."""

    folder: Path
    delivered: int = 0
    """Number of entries."""
    files: int = 0
    """Number of file uploads."""
    closed: list[str] = field(default_factory=list)
    """Ids of the runs that were closed, as KILLED unless the caller gave another status."""
    refused: int = 0
    problem: str = ""
    """Why the journal was not recovered, or not completely; empty on success."""
    by_others: bool = False
    """Whether another process or thread was faster."""


@dataclass(frozen=True, slots=True)
class Cause:
    """How unclosed runs ended."""

    reason: str
    status: run_events.Status = "KILLED"
    at: float | None = None
    """Seconds since 1970, if the end was observed; otherwise `recover` takes the last write to the journal."""


def recover(
    found: Found, uri: str, registry_uri: str, state: Path, *, end: Cause | None = None, lock: int | None = None
) -> Recovered:
    """Deliver a dead process's journal to `uri`, close its open runs, attach their logs, and remove the journal.

    The runs are closed as KILLED unless `end` says otherwise. `lock` is the journal's lock, if the caller has taken it.
    """
    result = Recovered(found.folder)
    if found.state != "dead":
        result.problem = f"its process is {found.state}: {found.evidence}"
        return result
    try:
        lock = journal.take_over(found.folder) if lock is None else lock
    except FileNotFoundError:
        result.problem, result.by_others = "another process has removed it", True
        return result
    if lock is None:
        result.problem, result.by_others = "another process is recovering it", True
        return result
    try:
        _recover(found, uri, registry_uri, state, end or Cause(found.evidence), result)
    except Unreachable as error:
        result.problem = mask(str(error))
    except Exception as error:
        result.problem = mask(with_kind(error))
    finally:
        journal.give_back(found.folder, lock)
    return result


def recover_all(
    uri: str, registry_uri: str, state: Path, *, others: bool = False, hosts: Collection[str] = ()
) -> Iterator[tuple[Found, Recovered]]:
    """Recover every dead journal of this machine that belongs to the store of `uri`; with `others`, of every store.

    With `others`, waits for a journal that another process is recovering, and recovers it here if that fails. `hosts`
    names machines that no longer exist; their journals are treated as this machine's.
    """
    index.sweep(state)
    for found in index.find(state, hosts, held=others):
        if found.state not in ("dead", "recovering"):
            continue
        if uris.identity(found.uri) == uris.identity(mask_url(uri)):  # a journal records its URI masked
            yield found, recover_or_wait(found, uri, registry_uri, state, hosts)
        elif others and MASK in found.uri:
            problem = f"its store {found.uri} needs a password: set MLFLOW_TRACKING_URI to it"
            yield found, Recovered(found.folder, problem=problem)
        elif others:
            yield found, recover_or_wait(found, found.uri, found.uri, state, hosts)


def recover_or_wait(found: Found, uri: str, registry_uri: str, state: Path, hosts: Collection[str]) -> Recovered:
    """Recover a journal, or wait for another process that is already recovering it."""
    now: Found | None = found
    if found.state == "recovering":
        _report.warning("the journal of process %d: %s; waiting for it", found.pid, found.evidence)
    while now is not None:
        if now.state != "recovering":
            result = recover(now, uri, registry_uri, state)
            if not result.by_others:
                return result
        time.sleep(_POLL)
        now = index.look(found.folder, hosts)
    return Recovered(found.folder, delivered=found.waiting, by_others=True)


def recover_behind(uri: str, registry_uri: str, state: Path) -> None:
    """Recover the journals of the store of `uri` on a background thread, if there are any journals."""

    def work() -> None:
        for found, result in recover_all(uri, registry_uri, state):
            if result.problem and found.folder.exists():  # otherwise there is nothing left to recover
                _report.warning("the journal of process %d was not recovered: %s", found.pid, result.problem)
            elif not result.problem and not result.by_others:
                closed = f"; closed as KILLED: {', '.join(result.closed)}" if result.closed else ""
                text = "recovered the journal of process %d: %d entries delivered%s"
                _report.warning(text, found.pid, result.delivered, closed)

    if next(journal.folder_of(state).glob("*"), None) is not None:
        spawn(work, name="autogen_team-recovery")


def after_death(folders: list[str], reasons: Mapping[str, str] = {}) -> None:
    """Recover the journals of dead processes; the environment names the stores.

    `reasons` has, by folder, why some of the processes were asked to end. A journal whose store is down, or that
    another process is recovering, is retried for up to 15 minutes.
    """
    waiting = [Path(folder) for folder in folders]
    dying_until = time.monotonic() + _DYING
    give_up = time.monotonic() + PATIENCE
    while waiting and time.monotonic() < give_up:
        is_dying = False
        for path in list(waiting):
            found = index.look(path)
            if found is not None and found.state == "alive" and time.monotonic() < dying_until:
                is_dying = True  # a process that has lost its connection may still hold its lock for a moment
            elif (
                found is None
                or found.state == "alive"
                or (found.state == "dead" and _is_recovered(found, reasons.get(str(path))))
            ):
                waiting.remove(path)
        if waiting:
            time.sleep(_POLL if is_dying else _PAUSE)


def _is_recovered(found: Found, reason: str | None) -> bool:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    registry_uri = os.environ.get("MLFLOW_REGISTRY_URI") or uri
    cause = Cause(reason or f"process {found.pid} on {found.host} died without closing its run")
    result = recover(found, uri, registry_uri, found.folder.parent.parent, end=cause)
    if result.closed:
        ping.report_death(cause.reason)
    return not result.problem


def _recover(found: Found, uri: str, registry_uri: str, state: Path, how: Cause, result: Recovered) -> None:
    entries = reader.read(found.folder)
    version = next(entry["version"] for entry in entries if entry["op"] == "journal")
    if version > VERSION:
        result.problem = f"its format {version} is from a newer version of autogen-team"
        return
    client = mlflow.MlflowClient(uri, registry_uri)
    backend = mlflow_backend.of(mlflow_backend.plain_store(uri), uri)
    delivery = Delivery(backend, state, attach=partial(files.bring, client, found.folder))
    acked = reader.acked(found.folder)
    waiting = [entry for entry in entries if entry["n"] > acked]
    for entry in entries:
        if entry["op"] == "journal":
            delivery.ids |= entry.get("created", {})
        elif entry["op"] == "created":
            delivery.ids[entry["run"]] = entry["id"]
    attempts = _attempts(entries)
    over = _claimed(Owners(backend), entries, attempts, delivery.ids)
    left = list(_without_heartbeats(signs.before_claims(waiting, over)))
    delivery.insist(left)
    # Entries that create runs stay unacknowledged: a second attempt gets the ids of the runs by delivering them again.
    if all(entry["op"] != "create" for entry in left):
        reader.acknowledge(found.folder, entries[-1]["n"])
    result.delivered, result.refused = found.waiting, delivery.refused
    end = int((how.at or found.last_write) * 1000)
    left_open = {
        run_id: delivery.ids.get(run_id, run_id)
        for run_id in [*index.open_runs(entries), *_half_open(entries, client)]
        if _is_there(client, delivery.ids.get(run_id, run_id))
    }
    for run_id, real in left_open.items():
        if run_id not in over and _close(client, backend, real, end, how, attempts.get(run_id, 1)):
            result.closed.append(real)
    # Uploads may take long, so the runs are closed first. In older versions, the log and the code may be among them.
    result.refused += uploads.finish(
        found.folder, uri, state, lambda run_id: files.root_of(client, delivery.ids.get(run_id, run_id), uri)
    )
    result.files = found.files
    for run_id, real in left_open.items():
        _attach_log(client, real, run_events.log_folder(state, run_id))
        _attach_code(client, backend, real, state, run_id)
    journal.remove(found.folder)


def _attempts(entries: list[Entry]) -> dict[str, int]:
    """Return the attempt number of each run that the process has opened."""
    found: dict[str, int] = {}
    for entry in entries:
        for one in entry["open"] if entry["op"] == "journal" else [entry] if entry["op"] == "open" else ():
            found[one["run"]] = one.get("attempt", 1)
    return found


def _claimed(
    owners: Owners, entries: list[Entry], opened: Mapping[str, int], ids: Mapping[str, str]
) -> dict[str, float]:
    """Return the runs of a dead process that a later attempt of the job has claimed, with the times of the claims.

    `opened` has the attempt number of each run that the process has opened.
    """
    found: dict[str, float] = {}
    joined: dict[str, int] = {}
    until = 0.0
    for entry in entries:
        if entry["op"] == "journal":
            joined |= entry.get("joined", {})
            until = entry.get("until", until)
        elif entry["op"] == "joined":
            joined[entry["run"]] = entry["attempt"]
    for run_id, attempt in {**joined, **opened}.items():
        real = ids.get(run_id, run_id)
        with suppress(Refused):  # the run was deleted, or does not exist yet
            owners.look(real)
        at = owners.claimed_at(real, attempt, 0.0 if run_id in opened else until)
        if at is not None:
            found[run_id] = at
    return found


def _without_heartbeats(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield the entries of a dead process without heartbeats."""
    for entry in entries:
        if entry["op"] != "tags":
            yield entry
            continue
        values = {key: value for key, value in entry["values"].items() if key not in _SIGNS}
        if values:
            yield {**entry, "values": values}


def close_run(uri: str, registry_uri: str, state: Path, run_id: str, end: Cause) -> bool:
    """Close a run whose dead process has left no journal, and attach its log; return whether the run was open."""
    client = mlflow.MlflowClient(uri, registry_uri)
    backend = mlflow_backend.of(mlflow_backend.plain_store(uri), uri)
    is_open = _is_there(client, run_id) and _close(client, backend, run_id, int((end.at or time.time()) * 1000), end)
    if is_open:
        _attach_log(client, run_id, run_events.log_folder(state, run_id))
        _attach_code(client, backend, run_id, state, run_id)
    return is_open


def _half_open(entries: list[Entry], client: mlflow.MlflowClient) -> Iterator[str]:
    """Yield the ids of runs that were created but not recorded, by the mark that was recorded before their creation."""
    opening: dict[str, str] = {}
    if any(entry["op"] == "closed" for entry in entries):
        return
    for entry in entries:
        if entry["op"] == "journal":
            opening |= {one["mark"]: one["experiment"] for one in entry["opening"]}
        elif entry["op"] == "opening":
            opening[entry["mark"]] = entry["experiment"]
        elif entry["op"] == "open":
            opening.pop(entry.get("mark", ""), None)
    for mark, experiment_id in opening.items():
        for run in client.search_runs([experiment_id], f"tags.`{OPENED_BY}` = '{mark}'"):
            yield run.info.run_id


def _is_there(client: mlflow.MlflowClient, run_id: str) -> bool:
    """Return whether the run can still be closed; it may have been deleted."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return False
        raise


def _close(
    client: mlflow.MlflowClient, backend: Backend, run_id: str, end: int, how: Cause, attempt: int | None = None
) -> bool:
    run = client.get_run(run_id)
    is_over = attempt is not None and run_events.attempt_of(run.data.tags) > attempt
    if run.info.status != "RUNNING" or is_over:
        return False
    if run_events.EXCEPTION_TAG not in run.data.tags and how.status != "FINISHED":
        backend.log(Batch(run_id, tags={run_events.EXCEPTION_TAG: mask(how.reason)}))
    end = max(end, run.info.start_time)
    _log_sums_of_traces(backend, run, end, mlflow_backend.plain_store(client.tracking_uri))
    backend.update(run_id, how.status, end, None)
    return True


def log_sums_of_traces(uri: str, run_id: str, at: float) -> None:
    """Log the sums of a run's traces, if it has any; `at` is its end in seconds since 1970."""
    store = mlflow_backend.plain_store(uri)
    _log_sums_of_traces(mlflow_backend.of(store, uri), mlflow.MlflowClient(uri).get_run(run_id), int(at * 1000), store)


def _log_sums_of_traces(backend: Backend, run: Run, end: int, store: Any) -> None:
    run_id = run.info.run_id
    try:
        sums = stored_sums.of_run(store, run.info.experiment_id, run_id)
        if sums:
            logged = [{"key": key, "value": value, "timestamp": end, "step": 0} for key, value in sums.items()]
            backend.log(Batch(run_id, metrics=logged))
    except Exception as error:  # closing the run matters more
        _report.warning("the sums of the traces of run %s are not logged: %s", run_id, mask(with_kind(error)))


def _attach_log(client: mlflow.MlflowClient, run_id: str, folder: Path) -> None:
    paths = sorted(folder.glob("*.log"))
    for path in paths:
        client.log_artifact(run_id, str(path), run_events.LOG_ARTIFACTS)
        path.unlink()
    if paths:
        folder.rmdir()


def _attach_code(client: mlflow.MlflowClient, backend: Backend, run_id: str, state: Path, noted_as: str) -> None:
    """Upload the snapshot of a run if it still waits; after an outage, it waits under the local id of the run."""
    folder = code_files.waiting_for(state, noted_as)
    if folder is not None:
        client.log_artifacts(run_id, str(folder), code_files.ARTIFACTS)
        if tags := code_files.tags(folder):
            backend.log(Batch(run_id, tags=tags))
    code_files.forget(state, noted_as)
