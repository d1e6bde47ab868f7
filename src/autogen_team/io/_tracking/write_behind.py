"""Tracking that does not wait: the journal, the thread that delivers it, and the store that stands in for MLflow's."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack, suppress
from multiprocessing import util
from pathlib import Path

import mlflow

from autogen_team.io import _job
from autogen_team.io._forking import ForkSafeLock, start_afresh_after_fork
from autogen_team.io._redact import mask_url
from autogen_team.io._tracking import artifacts, destinations, links, seam
from autogen_team.io._tracking.courier import Courier
from autogen_team.io._tracking.delivery import Delivery
from autogen_team.io._tracking.entries import Entry
from autogen_team.io._tracking.journal import Journal, JournalError
from autogen_team.io._tracking.link import Link
from autogen_team.io._tracking.store import DurableStore
from autogen_team.io._tracking.watchdog import Watchdog

_report = logging.getLogger("autogen_team")
_lock = ForkSafeLock()
_working: dict[str, WriteBehind] = {}
"""By the identity of the store."""


def start(uri: str, registry_uri: str, state: Path, *, connect_timeout: float, flush_timeout: float) -> _job.Undo:
    """Let what is logged to the store of `uri` go through a journal; the returned function delivers and ends that.

    Whoever starts it again for the same store shares it, and the last one to leave ends it.
    """
    key = seam.identity(uri)
    with _lock, seam.starting_stand_in():
        shared = _working.get(key)
        if shared is None:
            shared = _working[key] = WriteBehind(uri, registry_uri, state, connect_timeout, flush_timeout)
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
    """Return what works for this store, if anything does."""
    return _working.get(seam.identity(uri))


def open_runs() -> dict[str, str]:
    """Return the store of each run that this process has open, however it was opened."""
    return {run_id: one.uri for one in list(_working.values()) for run_id in one.journal.open_runs()}


def flush(timeout: float) -> bool:
    """Deliver what was written up to now to each store, and tell whether all of them have it."""
    deadline = time.monotonic() + timeout
    answers = [one.flush(max(0.0, deadline - time.monotonic())) for one in list(_working.values())]
    return all(answers)


class WriteBehind:
    """One store, written behind the job's back."""

    def __init__(self, uri: str, registry_uri: str, state: Path, connect_timeout: float, flush_timeout: float) -> None:
        self.users = 0
        self._owner = os.getpid()
        self._flush_timeout = flush_timeout
        self.uri = uri
        self._client = mlflow.MlflowClient(uri, registry_uri)
        inner = seam.plain_store(uri)
        link = self._link = Link(uri, connect_timeout)
        self.journal = Journal(state, uri=mask_url(uri))
        delivery = Delivery(destinations.of(inner, uri), self._attach, state)
        self.courier = Courier(self.journal, delivery, link)
        self.store = DurableStore(inner, self.journal, self.courier, link, delivery.ids)
        delivery.on_created = self._created
        self._watchdog = Watchdog(uri, registry_uri)
        self.journal.on_begin = self._begin
        self._room = artifacts.WaitingRoom(self.journal, self.courier, link, self.store.is_to_be_made)
        self._undo = ExitStack()
        self._undo.callback(seam.stand_in(uri, self.store, self._room.find))
        self._undo.callback(seam.close_at_exit(self.close))
        start_afresh_after_fork(self)
        util.register_after_fork(self, WriteBehind._close_with_child)

    def after_fork(self) -> None:
        """Leave the parent's journal to the parent; this process has its own from its first entry on."""
        self._link.after_fork()
        self._watchdog.after_fork()
        self.journal.after_fork()
        self.courier.after_fork()
        self.store.after_fork()
        self._room.after_fork()

    def flush(self, timeout: float) -> bool:
        """Deliver what was written up to now, and tell whether the store has it; an attempt that fails is the last."""
        return self.courier.flush(timeout, give_up_when_cut=True)

    def close(self) -> None:
        """Stand in for the store no longer, and deliver what is left, at most for `flush_timeout` seconds."""
        try:
            self._undo.close()  # first, so that other threads of the job write to the store itself from now on
        finally:
            self._end(self._flush_timeout)

    def _end(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        try:
            self._room.flush(timeout)
            self.courier.stop(max(0.0, deadline - time.monotonic()))
        finally:
            try:
                left = self.journal.close()
            finally:
                self._watchdog.dismiss()
        if left is not None:
            waiting = self.journal.number - self.journal.acked - 1  # the last one says that the journal is closed
            _report.error(
                "%d entries for the MLflow store at %s were not delivered within %g s; they wait in %s. "
                "`autogen-team sync` delivers them, and so does the next start here with this store",
                waiting,
                mask_url(self.uri),
                timeout,
                left,
            )
        if self.courier.lost:
            text = "%d entries for the MLflow store at %s are lost: neither the journal nor the store could take them"
            _report.error(text, self.courier.lost, mask_url(self.uri))

    def _close_with_child(self) -> None:
        """Let a child of multiprocessing deliver before it leaves, which it does without any exit handler."""
        util.Finalize(self, self._finish, exitpriority=0)

    def _finish(self) -> None:
        if self.journal.folder is not None and os.getpid() != self._owner:
            # A store that is out of reach is not waited for: whoever started the child may wait for that. One that has
            # no time for us now, because all children end at once, is.
            deadline = time.monotonic() + self._flush_timeout
            is_there = self.flush(self._flush_timeout) or self._link.answers()
            self._end(max(0.0, deadline - time.monotonic()) if is_there else 0.0)

    def _begin(self, folder: Path) -> None:
        self._watchdog.watch(folder)
        self.courier.start()

    def _created(self, local: str, real: str) -> None:
        with suppress(JournalError):  # a full disk; whoever recovers the journal finds the run by its mark
            self.journal.run_created(local, real)
        info = self.store.info_of(local)
        if info is not None:
            link = links.of_run(self.uri, info.experiment_id, real)
            text = "the run %s, begun as %s while its store was out of reach, is %s there%s"
            _report.warning(text, info.run_name, local, real, f": {link}" if link else "")

    def _attach(self, entry: Entry) -> None:
        assert self.journal.folder is not None
        artifacts.bring(self._client, self.journal.folder, entry)
