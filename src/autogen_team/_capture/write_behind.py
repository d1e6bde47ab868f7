"""Write-behind tracking: the journal, the thread that delivers it, and the replacement for MLflow's store."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack, suppress
from multiprocessing import util
from pathlib import Path

from autogen_team._capture import artifacts, mlflow_internals
from autogen_team._capture.store import DurableStore
from autogen_team._process import Undo, grace
from autogen_team._process.forking import ForkSafeLock, start_afresh_after_fork
from autogen_team._redact import mask_url
from autogen_team._ship import files, mlflow_backend, recovery, ui_url, uris
from autogen_team._ship.agent_link import AgentLink, Message
from autogen_team._ship.availability import Availability
from autogen_team._ship.batches import Delivery
from autogen_team._ship.owners import Owners
from autogen_team._ship.shipper import Shipper
from autogen_team._ship.signs import Signs
from autogen_team._ship.system_metrics import SystemMetrics
from autogen_team._spool import files as spool
from autogen_team._spool import index
from autogen_team._spool.journal import Journal, JournalError
from autogen_team._spool.records import Entry

_HANDOVER_TO_SERVER, _HANDOVER_TO_DATABASE = 1.0, 5.0
"""Seconds that the job ships its journal before the agent loads its libraries and takes over: a client of 30 MB for a
server, MLflow for a database. Shorter jobs end sooner without the agent."""
_report = logging.getLogger("autogen_team")
_lock = ForkSafeLock()
_working: dict[str, WriteBehind] = {}
"""Active instances, by the identity of their store."""


def start(
    uri: str,
    registry_uri: str,
    state: Path,
    *,
    connect_timeout: float,
    flush_timeout: float,
    heartbeat: float,
    spool_limit: int,
    skips_replayed: bool = False,
) -> Undo:
    """Log to the store of `uri` through a journal; the returned function delivers the journal and stops this.

    Several callers for the same store share the journal, and the last one to leave closes it.
    """
    key = mlflow_internals.identity(uri)
    with _lock, mlflow_internals.starting_stand_in():
        shared = _working.get(key)
        if shared is None:
            shared = WriteBehind(uri, registry_uri, state, connect_timeout, flush_timeout, heartbeat, spool_limit)
            shared.store.skips_replayed = skips_replayed
            _working[key] = shared
        shared.users += 1

    def leave() -> None:
        with _lock:
            shared.users -= 1
            if shared.users:
                return
            del _working[key]
        shared.close()

    return leave


def of(uri: str) -> WriteBehind | None:
    """Return the instance in charge of this store; None if there is none."""
    return _working.get(mlflow_internals.identity(uri))


def open_runs() -> dict[str, str]:
    """Return the store URI of each run that this process has open, however it was opened."""
    return {run_id: one.uri for one in list(_working.values()) for run_id in one.journal.open_runs()}


def attempt_in(run_id: str) -> int | None:
    """Return the attempt in which this process has opened a run or works for it; None if that is unknown."""
    found = [one.journal.joined | one.journal.attempts() for one in list(_working.values())]
    return next((attempts[run_id] for attempts in found if run_id in attempts), None)


def leave_open(run_id: str) -> None:
    """Forget that this process has a run open, which another process will close."""
    for one in list(_working.values()):
        one.journal.run_left(run_id)


def flush(timeout: float) -> bool:
    """Deliver everything written so far to each store, and return whether all stores have it."""
    deadline = time.monotonic() + timeout
    mlflow_internals.wait_for_traces_within(timeout)
    answers = [one.flush(max(0.0, deadline - time.monotonic())) for one in list(_working.values())]
    return all(answers)


def await_files(source: str) -> None:
    """Wait until the files of a model are uploaded; `source` is their URI.

    Raises:
        StoreUnavailableError: a store does not answer.

    """
    for one in list(_working.values()):
        one.artifacts.await_all_below(source)


def _handover_after(uri: str) -> float:
    return _HANDOVER_TO_SERVER if uri.startswith(("http://", "https://")) else _HANDOVER_TO_DATABASE


class WriteBehind:
    """Write-behind tracking of one store."""

    def __init__(
        self,
        uri: str,
        registry_uri: str,
        state: Path,
        connect_timeout: float,
        flush_timeout: float,
        heartbeat: float,
        spool_limit: int,
    ) -> None:
        self.users = 0
        self._owner = os.getpid()
        self._flush_timeout = flush_timeout
        self.uri = uri
        self.state = state
        inner = mlflow_backend.plain_store(uri)
        self._plain_store = inner
        self._roots: dict[str, str] = {}
        """Artifact URIs of runs that began while the store was unreachable, by local run id."""
        availability = self._availability = Availability(uri, connect_timeout)
        self.journal = Journal(state, uri=mask_url(uri))
        backend = mlflow_backend.of(inner, uri)
        delivery = Delivery(backend, state, attach=self._attach)
        self._agent = AgentLink(state, {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": registry_uri})
        self.shipper = Shipper(
            self.journal,
            delivery,
            availability,
            self._agent,
            self._for_agent,
            _handover_after(uri),
            Signs(Owners(backend), heartbeat),
            SystemMetrics(backend),
        )
        self.store = DurableStore(inner, self.journal, self.shipper, availability, delivery.ids)
        delivery.on_created = self._created
        self.journal.on_begin = self._begin
        self.artifacts = artifacts.Artifacts(
            self.journal,
            uri,
            state,
            availability,
            real_root=self._real_root,
            renew=self._agent.renew,
            limit=spool_limit,
        )
        self.store.artifacts = self.artifacts
        self._undo = ExitStack()
        self._undo.callback(artifacts.stand_in.take())
        self._undo.callback(mlflow_internals.stand_in(uri, self.store, self.artifacts))
        self._undo.callback(mlflow_internals.close_at_exit(self.close))
        start_afresh_after_fork(self)
        util.register_after_fork(self, WriteBehind._close_with_child)

    def after_fork(self) -> None:
        """Leave the parent's journal to the parent; this process gets its own with its first entry."""
        self._availability.after_fork()
        self._agent.after_fork()
        self.journal.after_fork()
        self.shipper.after_fork()
        self.store.after_fork()
        self.artifacts.after_fork()

    def flush(self, timeout: float) -> bool:
        """Deliver everything written so far, and return whether the store has it; a failed attempt ends the wait."""
        deadline = time.monotonic() + timeout
        is_delivered = self.shipper.flush(timeout, give_up_when_cut=True)
        return self.artifacts.flush(max(0.0, deadline - time.monotonic()), give_up_when_cut=True) and is_delivered

    def close(self) -> None:
        """Stop replacing the store, and deliver the rest within at most `flush_timeout` seconds."""
        try:
            self._undo.close()  # first, so that other threads of the job now write to the store itself
        finally:
            self._end(self._flush_timeout)

    def _end(self, timeout: float) -> None:
        timeout = grace.bounded(timeout)
        deadline = time.monotonic() + timeout
        try:
            self.artifacts.flush_images(timeout)
            self.shipper.stop(max(0.0, deadline - time.monotonic()))
            self.artifacts.close(max(0.0, deadline - time.monotonic()))
        finally:
            try:
                left = self.journal.close()
            finally:
                is_known = self._agent.dismiss()
        if left is not None:
            entries = self.journal.number - self.journal.acked - 1  # the last entry records that the journal is closed
            uploads = spool.waiting(left)
            _report.error(
                "%s for the MLflow store at %s were not delivered within %g s; they wait in %s. "
                "%s`autogen-team sync` or the next start here with this store delivers them",
                index.in_words(entries, len(uploads), sum(one.size for one in uploads)),
                mask_url(self.uri),
                timeout,
                left,
                f"The agent retries for {recovery.PATIENCE / 60:g} minutes. After that, " if is_known else "",
            )
        if self.shipper.lost:
            text = "%d entries for the MLflow store at %s are lost: neither the journal nor the store accepted them"
            _report.error(text, self.shipper.lost, mask_url(self.uri))

    def _close_with_child(self) -> None:
        """Make a multiprocessing child deliver before it exits, because it calls no exit handlers."""
        util.Finalize(self, self._finish, exitpriority=0)

    def _finish(self) -> None:
        if self.journal.folder is not None and os.getpid() != self._owner:
            # Do not wait for an unreachable store: the parent may be waiting for this child. Do wait for a store that
            # is only busy because all children end at once.
            deadline = time.monotonic() + self._flush_timeout
            is_there = self.flush(self._flush_timeout) or self._availability.answers()
            self._end(max(0.0, deadline - time.monotonic()) if is_there else 0.0)

    def _begin(self, folder: Path) -> None:
        self._agent.watch(folder)
        self.shipper.start()

    def _created(self, local: str, real: str) -> None:
        with suppress(JournalError):  # a full disk; a recovery then finds the run by its mark
            self.journal.run_created(local, real)
        info = self.store.info_of(local)
        if info is not None:
            link = ui_url.of_run(self.uri, info.experiment_id, real)
            text = "the run %s, which began as %s while its store was unreachable, has the id %s there%s"
            _report.warning(text, info.run_name, local, real, f": {link}" if link else "")

    def _for_agent(self) -> Message | None:
        """Return the agent's access data for the store; None if only MLflow can reach the store."""
        if self.uri.startswith(("http://", "https://")):
            login = mlflow_backend.login_of(self.uri)
            return None if login is None else {"state": str(self.state), "rest": login}
        if hasattr(mlflow_backend.plain_store(self.uri), "engine"):
            return {"state": str(self.state), "uri": uris.absolute(self.uri)}
        return None

    def _attach(self, entry: Entry) -> None:
        assert self.journal.folder is not None
        files.bring(mlflow_backend.client(self.uri, self.uri), self.journal.folder, entry)

    def _real_root(self, run_id: str) -> str | None:
        """Return the artifact URI of a run; None if the store has not created the run yet, or does not answer."""
        if run_id not in self._roots and not self.store.is_to_be_made(run_id):
            with suppress(Exception):
                self._roots[run_id] = files.root_of(self._plain_store, self.store.real_id(run_id), self.uri)
        return self._roots.get(run_id)
