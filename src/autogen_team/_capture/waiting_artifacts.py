"""Artifact uploads that outlast an outage: the files wait as copies beside the journal, one entry for each upload."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NoReturn

from autogen_team._capture import mlflow_internals
from autogen_team._capture.transparent_proxy import TransparentProxy
from autogen_team._process.folders import private_folder
from autogen_team._ship.availability import Availability, StoreUnavailableError
from autogen_team._ship.files import Kind
from autogen_team._ship.shipper import Shipper
from autogen_team._spool import records
from autogen_team._spool.journal import Journal

_FILES = "files"
"""Folder beside the segments of the journal that holds the copies."""
_THROUGH_THE_SERVER = ("mlflow-artifacts:", "http:", "https:")
_PATIENCE = 10.0
"""Seconds that an upload waits for the delivery of earlier entries."""


class WaitingArtifacts:
    """Uploads artifacts of runs and logged models, or keeps copies of them for a later upload."""

    def __init__(
        self, journal: Journal, shipper: Shipper, availability: Availability, is_to_be_made: Callable[[str], bool]
    ) -> None:
        """Keep copies in `journal`; `is_to_be_made` tells whether the store has yet to create the run of an id."""
        self._journal = journal
        self._is_to_be_made = is_to_be_made
        self._shipper = shipper
        self._availability = availability
        self._numbers = itertools.count(1)
        self._last = 0
        """Number of the last entry with an artifact."""
        self.after_fork()

    def after_fork(self) -> None:
        """Forget the helper thread and its pending uploads, which are the parent's."""
        self._helper: ThreadPoolExecutor | None = None
        self._on_their_way: set[Future[None]] = set()

    def later(self, bring: Callable[[], None]) -> Future[None]:
        """Call `bring` on the helper thread, or on the caller's own if no thread can be started any more."""
        if self._helper is None:
            self._helper = ThreadPoolExecutor(1, "autogen_team-images")
        try:
            future = self._helper.submit(bring)
        except RuntimeError:  # the interpreter is shutting down
            future = Future()
            bring()
            future.set_result(None)
        self._on_their_way.add(future)
        future.add_done_callback(self._on_their_way.discard)
        return future

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the helper thread has no pending uploads, at most `timeout` seconds."""
        wait(list(self._on_their_way), timeout)

    def find(self, find: Callable[[], Any], owner: str, kind: Kind) -> Any:
        """Return a repository whose uploads do not fail while the server is gone.

        A repository that is not reached through the server is returned as it is.
        """
        if kind == "run" and self._is_to_be_made(owner):
            return _Patient(_Nowhere(owner), self, owner, kind)
        repository = find()
        if not str(repository.artifact_uri).startswith(_THROUGH_THE_SERVER):
            return repository
        return _Patient(repository, self, owner, kind)

    def log(self, path: Path, folder: str | None, owner: str, kind: Kind, upload: Callable[[], None]) -> None:
        """Upload a file or folder if the server answers, else keep a copy for later."""
        if self._is_to_be_made(owner) or not self._is_next():
            self._keep(path, folder, owner, kind)
            return
        try:
            upload()
        except Exception:
            if self._availability.answers():  # so the connection is not at fault
                raise
            self._keep(path, folder, owner, kind)

    def _is_next(self) -> bool:
        """Return whether the server answers and has taken every earlier upload."""
        try:
            self._availability.require()
        except StoreUnavailableError:
            return False
        return self._journal.acked >= self._last or self._shipper.flush(_PATIENCE, give_up_when_cut=True)

    def _keep(self, path: Path, folder: str | None, owner: str, kind: Kind) -> None:
        place = self._journal.begin() / _FILES / f"{next(self._numbers):06d}"
        private_folder(place.parent)
        if path.is_dir():
            shutil.copytree(path, place)
        else:
            place.mkdir()
            shutil.copy2(path, place)
        owned = {"run": owner} if kind == "run" else {"model": owner}
        self._last = self._journal.append(
            records.body("artifact", place=f"{_FILES}/{place.name}", path=folder, **owned)
        )


class _Nowhere:
    """Artifact repository of a run that the store has not created yet; every method raises."""

    artifact_uri = ""

    def __init__(self, owner: str) -> None:
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any, **__: Any) -> NoReturn:
            raise StoreUnavailableError(f"{name}: the run {self._owner} will be created when its store is back")

        return fail


class _Patient(TransparentProxy):
    """Stands in for an artifact repository, and lets its uploads wait; all other calls go to the repository."""

    def __init__(self, repository: Any, waiting: WaitingArtifacts, owner: str, kind: Kind) -> None:
        super().__init__(repository)
        self._waiting = waiting
        self._owner = owner
        self._kind: Kind = kind

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Upload a file, now or later."""
        self._bring("log_artifact", local_file, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Upload the content of a folder, now or later."""
        self._bring("log_artifacts", local_dir, artifact_path)

    def _log_artifact_async(self, filename: str, artifact_path: str | None = None, artifact: Any = None) -> Any:
        """Upload an image on the helper thread, because an upload on MLflow's own thread cannot wait."""

        def bring() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, filename)
                if artifact is not None:
                    artifact.save(path)
                self.log_artifact(str(path), artifact_path)

        return mlflow_internals.operations(self._waiting.later(bring))

    def flush_async_logging(self) -> None:
        """Wait until every image is uploaded or kept for later."""
        self._waiting.flush()

    def _bring(self, method: str, path: str, folder: str | None) -> None:
        def upload() -> None:
            getattr(self._inner, method)(path, folder)

        self._waiting.log(Path(path), folder, self._owner, self._kind, upload)
