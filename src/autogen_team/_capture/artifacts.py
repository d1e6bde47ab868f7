"""Background upload of artifacts: a call that logs files returns once they are copied beside the journal.

While the service runs, this module replaces MLflow's artifact repositories for all callers: the fluent functions,
clients, `runs:/` and `models:/` URIs. Waiting files are listed and downloaded like uploaded ones. Repositories in local
folders are not replaced: for them, a copy is the upload.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import verify_artifact_path
from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories

from autogen_team._capture import mlflow_internals
from autogen_team._capture.run_cache import PENDING
from autogen_team._capture.transparent_proxy import TransparentProxy
from autogen_team._process import Undo, grace, sizes
from autogen_team._process.refcount import RefCount
from autogen_team._process.threads import spawn
from autogen_team._ship import files
from autogen_team._ship.availability import Availability, StoreUnavailableError
from autogen_team._ship.uploads import Uploads
from autogen_team._spool import files as spool
from autogen_team._spool import journal as journals
from autogen_team._spool.files import Waiting

if TYPE_CHECKING:
    from autogen_team._spool.journal import Journal

_OWN_BELOW = 2**20
_OWN_AT_ONCE = 8
"""Bytes of an upload, and number of waiting uploads, below which the job itself does an upload: the log of a run, the
snapshot, a report. The job has MLflow loaded already, which takes the agent's uploader seconds. Larger uploads would
keep the job's interpreter busy."""
_ABANDONED = 10.0
"""Seconds after which the job uploads files that no agent's uploader has taken."""
_POLL = 0.1
"""Polling interval in seconds for uploads."""
_IDLE_POLL = 1.0
"""Polling interval in seconds while the thread is idle; also the seconds between two calls of `renew`."""
_READ_PATIENCE = 20.0
"""Seconds that a read waits for files of a run that the store has just created."""
_SPACE_POLL = 0.5
"""Polling interval in seconds while files wait for space."""
_LOCAL = frozenset({"", "file"})
_REFERRING = frozenset({"runs", "models"})
"""Schemes of repositories that delegate to another repository, which is replaced instead."""

_verify_path: Callable[[str | None], None] = verify_artifact_path
_report = logging.getLogger("autogen_team")


class Artifacts:
    """The artifacts that a process logs to one store."""

    def __init__(
        self,
        journal: Journal,
        uri: str,
        state: Path,
        availability: Availability,
        *,
        real_root: Callable[[str], str | None],
        renew: Callable[[], None],
        limit: int,
    ) -> None:
        """Copy files beside `journal` while fewer than `limit` bytes wait in the state folder.

        `real_root` returns the artifact URI of a run that began while the store was unreachable, and None until the
        store has created the run. `renew` sends the agent the current credentials.
        """
        self._journal = journal
        self._uri = uri
        self._state = state
        self._availability = availability
        self._real_root = real_root
        self._renew = renew
        self._limit = limit
        self._has_told_of_limit = False
        self.after_fork()

    def after_fork(self) -> None:
        """Forget the parent's threads and their uploads."""
        self._numbers = itertools.count(1)
        self._marked: dict[str, str] = {}
        """Statuses to set on models once their files are uploaded, by model id."""
        self._lock = threading.RLock()  # a signal handler may log a file
        self._more = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_over = False
        self._uploads = Uploads(self._uri, self._state, lambda _one, text: _report.error("%s", text))
        self._failures = 0
        self._warned_of = ""
        self._uploader_lock: int | None = None
        self._absent_since: float | None = None
        self._renewed = 0.0
        self._images: ThreadPoolExecutor | None = None
        self._on_their_way: set[Future[None]] = set()

    # Logging

    def log(self, root: str, source: Path, path: str | None) -> None:
        """Copy a file, or the content of a folder, for an upload to the folder `path` of the artifacts at `root`.

        Raises:
            MlflowException: MLflow does not accept the path.
            OSError: the source cannot be read.

        """
        _verify_path(path)
        self._await_space(source)
        order = {"root": root} | ({"path": path} if path else {})
        if root.startswith(PENDING):
            order["run"] = urlsplit(root).path.strip("/").split("/")[0]
        folder = self._journal.begin()
        number = next(self._numbers)
        is_quiet = sum(one.is_own for one in spool.waiting(folder)) < _OWN_AT_ONCE
        own_below = _OWN_BELOW if is_quiet else 0
        if "run" in order:  # only the job learns the address of such a run
            own_below = sys.maxsize
        if spool.put(folder, number, source, order, own_below=own_below) is not None:
            self._start()
            self._more.set()

    def mark_later(self, root: str, model_id: str, status: str) -> bool:
        """Set the status of a model once its files are uploaded; return False if no files wait."""
        waiting = [one for one in self._own_waiting() if self._is_below(one, root)]
        if not waiting:
            return False
        number = next(self._numbers)
        order = {"root": root, "model": model_id, "status": status}
        spool.put_status(self._journal.begin(), number, order, is_own=all(one.is_own for one in waiting))
        self._marked[model_id] = status
        self._more.set()
        return True

    def status_of(self, model_id: str) -> str | None:
        """Return the status that a model gets after its uploads; None if no status waits."""
        if model_id in self._marked:
            orders = [one.order for one in self._own_waiting() if not one.size]
            if any(order.get("model") == model_id for order in orders):
                return self._marked[model_id]
            del self._marked[model_id]
        return None

    def await_all_below(self, root: str) -> None:
        """Wait until no file waits below a URI, or anywhere if the URI is a `runs:/` or `models:/` reference.

        Raises:
            StoreUnavailableError: the store does not answer.

        """
        refers = urlsplit(root).scheme in _REFERRING
        while any(refers or self._is_below(one, root) for one in self._own_waiting()):
            if self._is_cut():
                self._availability.refuse()
            time.sleep(_POLL)

    def _own_waiting(self) -> list[Waiting]:
        folder = self._journal.folder
        return [] if folder is None else spool.waiting(folder)

    @staticmethod
    def _is_below(one: Waiting, root: str) -> bool:
        root = root.rstrip("/")
        with suppress(FileNotFoundError):
            return any(address == root or address.startswith(root + "/") for address in one.targets)
        return False

    def later(self, work: Callable[[], None]) -> Future[None]:
        """Call `work` on a helper thread, or on the calling thread once no thread can be started."""
        if self._images is None:
            self._images = ThreadPoolExecutor(1, "autogen_team-images")
        try:
            future = self._images.submit(work)
        except RuntimeError:  # the interpreter is shutting down
            future = Future()
            work()
            future.set_result(None)
        self._on_their_way.add(future)
        future.add_done_callback(self._on_their_way.discard)
        return future

    def flush_images(self, timeout: float | None = None) -> None:
        """Wait until the helper thread is idle, at most `timeout` seconds."""
        wait(list(self._on_their_way), timeout)

    def _await_space(self, source: Path) -> None:
        while True:
            waiting = sum(one.size for one in self._of_all())
            if not waiting or waiting + _size(source) <= self._limit:
                return
            if not self._has_told_of_limit:
                self._has_told_of_limit = True
                text = (
                    "%s of artifacts wait in %s, and `mlflow.spool_limit` is %s: calls that log more wait for space. "
                    "Metrics, and the end of runs, do not wait"
                )
                _report.warning(text, sizes.show(waiting), self._state, sizes.show(self._limit))
            time.sleep(_SPACE_POLL)

    # Uploading

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._is_over:
                self._thread = spawn(self._run, name="autogen_team-artifacts")

    def _run(self) -> None:
        while not self._is_over:
            self._more.wait(_IDLE_POLL if self.count() else None)
            self._more.clear()
            while self.count() and not self._is_over:
                try:
                    self._step()
                except Exception:  # a log handler of the job or the disk may fail: keep the thread running
                    with suppress(Exception):
                        _report.debug("an upload could not be started", exc_info=True)
                self._uploads.wait(_POLL)
        self._release_uploader_lock()

    def _step(self) -> None:
        """Start the uploads that are ready, and log the messages of the agent's uploader."""
        folder = self._journal.folder
        if folder is None:
            return
        for text in spool.notes(folder):
            _report.warning("%s", text)
        found = spool.waiting(folder)
        is_agent_absent = self._replaces_agent(folder, [one for one in found if not one.is_own])
        mine = [one for one in found if one.is_own or is_agent_absent]
        if mine and self._may_try():
            self._uploads.start(filter(self._is_placed, mine))
        if self._uploads.failures > self._failures:
            self._failures = self._uploads.failures
            if self._availability.answers():
                self._warn(self._uploads.fault)

    def _may_try(self) -> bool:
        """Return whether uploads run or the store answers; without it, MLflow logs a warning for each attempt."""
        if not self._uploads.is_idle:
            return True
        try:
            self._availability.require()
        except StoreUnavailableError:
            return False
        return True

    def _warn(self, fault: str) -> None:
        if fault and fault != self._warned_of:
            self._warned_of = fault
            _report.warning("artifacts cannot be uploaded: %s. They are kept, and the upload is retried", fault)

    def _is_placed(self, one: Waiting) -> bool:
        """Return whether the destination of an upload is known; set it if the store has created the run by now."""
        with suppress(FileNotFoundError):
            if "run" not in one.order:
                return True
            root = self._real_root(one.order["run"])
            if root is not None:
                one.order["root"] = root
                return True
        return False

    def _replaces_agent(self, folder: Path, for_agent: list[Waiting]) -> bool:
        """Return whether this process uploads larger files too, because no agent does."""
        if not for_agent:
            self._release_uploader_lock()
            return False
        if self._uploader_lock is not None:
            return True
        now = time.monotonic()
        if now > self._renewed + _IDLE_POLL:
            self._renewed = now
            self._renew()
        if journals.is_locked(spool.folder_of(folder)) or self._absent_since is None:
            self._absent_since = now
        elif now > self._absent_since + _ABANDONED:
            self._uploader_lock = journals.take_lock(spool.folder_of(folder))
        return self._uploader_lock is not None

    def _release_uploader_lock(self) -> None:
        lock, self._uploader_lock, self._absent_since = self._uploader_lock, None, None
        if lock is not None:
            os.close(lock)

    def count(self) -> int:
        """Return the number of waiting uploads."""
        return len(self._own_waiting())

    def flush(self, timeout: float, *, give_up_when_cut: bool = False) -> bool:
        """Wait until everything logged so far is uploaded, at most `timeout` seconds; return whether it is.

        With `give_up_when_cut`, stop waiting if the store does not answer.
        """
        until = max((one.number for one in self._own_waiting()), default=0)
        deadline = time.monotonic() + grace.bounded(timeout)
        while any(one.number <= until for one in self._own_waiting()):
            if time.monotonic() >= deadline or (give_up_when_cut and self._is_cut()):
                return False
            self._start()
            self._more.set()
            time.sleep(_POLL / 10)
        return True

    def _is_cut(self) -> bool:
        return self._availability.is_cut and not self._availability.answers()

    def close(self, timeout: float) -> None:
        """Wait for the uploads, at most `timeout` seconds, and end the thread."""
        self.flush(timeout)
        self._is_over = True
        self._more.set()
        self._uploads.moved.set()

    # Reading

    def _of_all(self) -> Iterator[Waiting]:
        """Yield the waiting uploads of all processes that share the state folder."""
        return spool.beside_all(journals.folder_of(self._state))

    def waiting_below(self, root: str) -> dict[str, Path]:
        """Return the current place of each file that waits for an upload below a URI, by its path below that URI.

        The result includes files of other processes.
        """
        found: dict[str, Path] = {}
        start = root.rstrip("/") + "/"
        for one in sorted(self._of_all(), key=lambda one: (one.place.parent, one.number)):
            with suppress(FileNotFoundError):
                base = one.order["root"].rstrip("/")
                for name in one.files():
                    address = "/".join(filter(None, (base, one.order.get("path"), name)))
                    if address.startswith(start):
                        found[address.removeprefix(start)] = one.content / name
        return found

    def real(self, root: str) -> tuple[Any, str] | None:
        """Return the real repository and URI for a placeholder URI; None until the store has created the run."""
        run_id, *inside = urlsplit(root).path.strip("/").split("/", 1)
        address = self._real_root(run_id)
        if address is None:
            return None
        address = "/".join((address.rstrip("/"), *inside))
        return files.repository_at(address, self._uri), address

    def wait_for_new_uploads(self) -> None:
        """Wait for the uploads of runs that the store has just created: their files are listed under the old URI."""
        for one in self._own_waiting():
            with suppress(FileNotFoundError):
                if "run" in one.order and self._real_root(one.order["run"]) is not None:
                    self.flush(_READ_PATIENCE, give_up_when_cut=True)
                    return


def _size(source: Path) -> int:
    paths = source.rglob("*") if source.is_dir() else (source,)
    return sum(path.stat().st_size for path in paths if path.is_file())


class _RepositoryToCome:
    """Artifact repository of a run that the store has not created yet."""

    def __init__(self, root: str) -> None:
        self.artifact_uri = root

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:  # noqa: ARG002 - as MLflow calls it
        """Return nothing, because all files of the run still wait."""
        return []

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            raise StoreUnavailableError(
                f"{name}: the run of {self.artifact_uri} does not exist yet; it is created once its store answers"
            )

        return fail


class Repository(TransparentProxy):
    """Replacement for an MLflow artifact repository: uploads wait, and reads include the waiting files."""

    def __init__(self, inner: Any, root: str, find: Callable[[], Artifacts | None]) -> None:
        """`find` returns the `Artifacts` that take the uploads; None once the service has stopped."""
        super().__init__(inner)
        self._root = root
        self._find = find

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Log a file."""
        artifacts = self._find()
        if artifacts is None:
            self._inner.log_artifact(local_file, artifact_path)
        elif Path(local_file).is_dir():
            raise IsADirectoryError(f"{local_file} is a folder, not a file: use log_artifacts")
        else:
            self._log(artifacts, "log_artifact", local_file, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Log the files of a folder."""
        artifacts = self._find()
        if artifacts is None:
            self._inner.log_artifacts(local_dir, artifact_path)
        else:
            self._log(artifacts, "log_artifacts", local_dir, artifact_path)

    def _log(self, artifacts: Artifacts, method: str, source: str, path: str | None) -> None:
        try:
            artifacts.log(self._root, Path(source), path)
        except OSError as error:
            if not Path(source).exists():
                raise
            # The copy failed: the disk is full, or the state folder cannot be written.
            _report.debug("an artifact could not be copied; uploading it at once: %s", error)
            getattr(self._inner, method)(source, path)

    def _log_artifact_async(self, filename: str, artifact_path: str | None = None, artifact: Any = None) -> Any:
        """Log an image that a helper thread encodes."""
        artifacts = self._find()
        if artifacts is None:
            return self._inner._log_artifact_async(filename, artifact_path, artifact)  # noqa: SLF001 - MLflow's own name

        def encode() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, filename)
                if artifact is not None:
                    artifact.save(path)
                self.log_artifact(str(path), artifact_path)

        return mlflow_internals.operations(artifacts.later(encode))

    def flush_async_logging(self) -> None:
        """Wait until every image is uploaded, unless the store does not answer."""
        artifacts = self._find()
        if artifacts is None:
            self._inner.flush_async_logging()
        else:
            artifacts.flush_images()
            artifacts.flush(_READ_PATIENCE, give_up_when_cut=True)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """Return the content of a folder, including files that wait for their upload."""
        waiting = self._waiting(path)
        found = {one.path: one for one in self._inner.list_artifacts(path)}
        start = f"{path.rstrip('/')}/" if path else ""
        for name, place in waiting.items():
            child, slash, _ = name.removeprefix(start).partition("/")
            if not name.startswith(start):  # the path is that of a file
                continue
            try:
                found[start + child] = FileInfo(start + child, bool(slash), None if slash else place.stat().st_size)
            except FileNotFoundError:  # uploaded since the store was asked
                found = {one.path: one for one in self._inner.list_artifacts(path)} | found
        return sorted(found.values(), key=lambda one: str(one.path))

    def download_artifacts(self, artifact_path: str | None = None, dst_path: str | None = None) -> str:
        """Download a file or folder, including files that wait for their upload."""
        path = (artifact_path or "").rstrip("/")
        waiting = self._waiting(path)
        if not waiting or (dst_path is not None and not Path(dst_path).is_dir()):
            return str(self._inner.download_artifacts(artifact_path, dst_path))
        target = Path(dst_path or tempfile.mkdtemp()).absolute()
        if path not in waiting and self._inner.list_artifacts(path or None):
            self._inner.download_artifacts(artifact_path, str(target))
        for name, place in waiting.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(place, target / name)
            except FileNotFoundError:  # uploaded in the meantime
                self._inner.download_artifacts(name, str(target))
        return str(target / path) if path else str(target)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file or folder once its waiting files are uploaded, because an upload may be running."""
        artifacts = self._find()
        if artifacts is not None:
            artifacts.await_all_below("/".join(filter(None, (self._root.rstrip("/"), artifact_path))))
        self._inner.delete_artifacts(artifact_path)

    def _is_directory(self, artifact_path: str) -> bool:
        return bool(self.list_artifacts(artifact_path))

    def _waiting(self, path: str | None) -> dict[str, Path]:
        artifacts = self._find()
        if artifacts is None:
            return {}
        artifacts.wait_for_new_uploads()
        wanted = (path or "").rstrip("/")
        found = artifacts.waiting_below(self._root)
        return {
            name: place
            for name, place in found.items()
            if not wanted or name == wanted or name.startswith(wanted + "/")
        }


def _take_over() -> Undo:
    repositories: dict[str, Any] = get_registered_artifact_repositories()
    before = dict(repositories)
    ours: dict[str, Callable[..., Any]] = {
        scheme: partial(_made, plain)
        for scheme, plain in before.items()
        if scheme not in _LOCAL and scheme not in _REFERRING
    }
    ours[PENDING.rstrip(":/")] = _pending
    repositories.update(ours)

    def undo() -> None:
        for scheme, make in ours.items():
            if repositories.get(scheme) is not make:  # another tool has registered its own since
                continue
            if scheme in before:
                repositories[scheme] = before[scheme]
            else:
                del repositories[scheme]

    return undo


stand_in = RefCount(_take_over)
"""Reference-counted replacement of MLflow's artifact repositories."""


def _made(plain: Callable[..., Any], artifact_uri: str, **uris: str | None) -> Any:
    """Return MLflow's repository, wrapped in a `Repository` unless the caller wants the plain one.

    A URI with a login is not wrapped, because the login would be written to disk.
    """
    inner = plain(artifact_uri, **uris)
    if files.is_plain() or "@" in urlsplit(artifact_uri).netloc:
        return inner
    find = partial(mlflow_internals.artifacts_of, uris.get("tracking_uri"))
    return inner if find() is None else Repository(inner, artifact_uri, find)


def _pending(artifact_uri: str, **uris: str | None) -> Any:
    """Return the repository of a run that began while its store was unreachable."""
    return _Pending(artifact_uri, partial(mlflow_internals.artifacts_of, uris.get("tracking_uri")))


class _Pending(Repository):
    """Repository of a run that began while its store was unreachable; the real one is used once it exists."""

    def __init__(self, root: str, find: Callable[[], Artifacts | None]) -> None:
        def find_and_look() -> Artifacts | None:
            artifacts = find()
            if artifacts is not None and isinstance(self._inner, _RepositoryToCome):
                there = artifacts.real(root)
                if there is not None:
                    self._inner, self._root = there
            return artifacts

        super().__init__(_RepositoryToCome(root), root, find_and_look)
