"""Starts a snapshot when a job opens its run, and uploads it to the run's artifacts.

One snapshot is made for each process that opens its own run, and is uploaded to all such runs of the process. In a
notebook each run gets a new snapshot, because cells are executed in between. Workers, ranks and child runs get none:
they run the code of their job. While a snapshot waits, `<state>/code/<run id>` links to it, so that a killed job's
snapshot is delivered with its journal.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autogen_team._process import Undo, grace, identity, run_events, streams
from autogen_team._process.deadline import within
from autogen_team._process.folders import private_folder
from autogen_team._process.forking import call_in_child, start_afresh_after_fork
from autogen_team._process.refcount import RefCount
from autogen_team._process.threads import spawn
from autogen_team._redact import Redactor, mask, values
from autogen_team._ship import code_files, uris
from autogen_team._snapshot import ARTIFACTS, CELLS, cells, process

if TYPE_CHECKING:
    import mlflow

PATIENCE = 10.0
"""Seconds that the end of a run waits for the upload of the snapshot, as it waits for its log."""

_report = logging.getLogger("autogen_team")
_numbers = itertools.count(1)


@dataclass(slots=True)
class Snapshot:
    """A snapshot that a thread waits for."""

    order: process.Order
    is_made: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    def begin(self, make: Callable[[process.Order], bool]) -> None:
        """Take the snapshot on a thread."""
        if spawn(partial(self._make, make), name="autogen_team-snapshot") is None:
            self.ended.set()

    def _make(self, make: Callable[[process.Order], bool]) -> None:
        try:
            self.is_made = make(self.order)
        finally:
            self.ended.set()

    @property
    def folder(self) -> Path:
        """Folder of the snapshot."""
        return Path(self.order.folder)


_early: list[Snapshot] = []
"""At most one snapshot, begun before this process opened its run."""
call_in_child(_early.clear)


def begin(
    state: Path, stores: tuple[str, str], command: list[str], script: str | None, make: Callable[[process.Order], bool]
) -> None:
    """Begin the snapshot of this process before it opens its run, so that later changes are not in the snapshot."""
    snapshot = Snapshot(_order(state, stores, command, script))
    _early[:] = [snapshot]
    snapshot.begin(make)


def start(state: Path, stores: tuple[str, str]) -> Undo:
    """Take a snapshot for each run that this process opens as a job, until the returned function is called."""
    return _listening.take(state, stores)


def _listen(state: Path, stores: tuple[str, str]) -> Undo:
    listener = _Snapshots(state, stores)
    unsubscribe = run_events.subscribe(listener)

    def stop() -> None:
        unsubscribe()
        listener.close()

    return stop


_listening = RefCount(_listen)


def _order(state: Path, stores: tuple[str, str], command: list[str], script: str | None) -> process.Order:
    """Return the order for a snapshot of this process."""
    extra = values.extra()
    folder = Path.cwd()
    return process.Order(
        folder=str(code_files.folder_of(state) / f"{identity.process_name()}-{next(_numbers)}"),
        command=command,
        cwd=str(folder),
        script=script,
        executable=sys.executable,
        python=".".join(map(str, sys.version_info[:3])),
        path=[entry or str(folder) for entry in sys.path],
        excluded=[str(state), *(path for uri in stores for path in _files_of(uri))],
        cells=cells.executed(),
        notebook=cells.notebook(),
        secrets=sorted(extra.values),
        patterns=list(extra.patterns),
        allow=list(extra.allow),
    )


def _files_of(uri: str) -> list[str]:
    """Return the files of a local store, which change with each run."""
    place = uris.local_place(uri)
    return [] if place is None else [f"{place}{suffix}" for suffix in ("", "-journal", "-shm", "-wal")]


def _main_script() -> str | None:
    found = getattr(sys.modules.get("__main__"), "__file__", None)
    return None if found is None else os.path.abspath(found)  # noqa: PTH100 - do not resolve links


class _Snapshots(run_events.Listener):
    """Listener that uploads a snapshot to each run that this process opens as a job."""

    def __init__(self, state: Path, stores: tuple[str, str]) -> None:
        self._state = state
        self._stores = stores
        # A process inside a command joins the run of the supervisor, which has taken the snapshot.
        self._joins = os.environ.get("MLFLOW_RUN_ID") if streams.SUPERVISED in os.environ else None
        self.after_fork()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Forget the snapshot and the uploads, because their threads are the parent's."""
        self._first: Snapshot | None = None
        self._uploads: dict[str, _Upload] = {}

    def run_started(self, run: run_events.Run) -> None:
        """Start the upload of a snapshot to the run."""
        if not _is_of_a_job(run) or (run.run_id == self._joins and not _early):
            return
        import mlflow

        snapshot = self._snapshot()
        link = private_folder(code_files.folder_of(self._state)) / run.run_id
        link.unlink(missing_ok=True)
        link.symlink_to(snapshot.folder.name)
        upload = self._uploads[run.run_id] = _Upload(run.run_id, snapshot, link, mlflow.MlflowClient())
        upload.begin()

    def run_ending(self, run: run_events.Run, end: run_events.End) -> None:  # noqa: ARG002 - the listener's signature
        """Wait for the upload of the snapshot, then upload the cells executed since."""
        upload = self._uploads.pop(run.run_id, None)
        if upload is not None:
            upload.finish()

    def close(self) -> None:
        """Remove the snapshot, unless an upload still needs it."""
        first, self._first = self._first, None
        if first is not None and first.ended.is_set() and not code_files.links_to(first.folder):
            shutil.rmtree(first.folder, ignore_errors=True)

    def _snapshot(self) -> Snapshot:
        if _early:
            self._first = _early.pop()
        elif self._first is None or cells.executed():
            self.close()
            command = list(getattr(sys, "orig_argv", sys.argv))
            self._first = Snapshot(_order(self._state, self._stores, command, _main_script()))
            self._first.begin(process.make)
        return self._first


def _is_of_a_job(run: run_events.Run) -> bool:
    """Return whether the run is that of a whole job, not of a worker, a rank or a child."""
    return run.is_outermost and run.parent_id is None and identity.worker() is None and not identity.rank()


@dataclass(slots=True)
class _Upload:
    """The upload of a snapshot to one run."""

    run_id: str
    snapshot: Snapshot
    link: Path
    client: mlflow.MlflowClient
    done: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> None:
        """Upload the snapshot on a thread, once it is taken."""
        if spawn(self._work, name="autogen_team-code") is None:
            self.done.set()

    def _work(self) -> None:
        try:
            self.snapshot.ended.wait()
            if self.snapshot.is_made:
                self.client.log_artifacts(self.run_id, str(self.snapshot.folder), ARTIFACTS)
                for name, value in code_files.tags(self.snapshot.folder).items():
                    self.client.set_tag(self.run_id, name, value)
            else:
                _report.debug("no snapshot could be taken for run %s", self.run_id)
            self.link.unlink(missing_ok=True)
        except Exception as error:
            text = "the snapshot of run %s could not be uploaded: %s; it is in %s"
            _report.warning(text, self.run_id, mask(str(error)), self.snapshot.folder)
        finally:
            self.done.set()

    def finish(self) -> None:
        """Wait for the upload, then upload the cells executed since."""
        if not self.done.wait(grace.bounded(PATIENCE)):
            text = "the snapshot of run %s was not uploaded within %g s; it is in %s"
            _report.warning(text, self.run_id, PATIENCE, self.snapshot.folder)
            return
        executed = cells.executed()
        if len(executed) > len(self.snapshot.order.cells):
            try:
                within(PATIENCE, partial(self._attach_cells, executed), name="autogen_team-cells")
            except Exception as error:
                _report.warning("the notebook cells of run %s could not be uploaded: %s", self.run_id, mask(str(error)))

    def _attach_cells(self, executed: cells.Cells) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, CELLS)
            path.write_text(cells.as_script(executed, Redactor(os.environ, in_code=True)), encoding="utf-8")
            self.client.log_artifact(self.run_id, str(path), ARTIFACTS)
