"""The journal of a process: its entries are on disk before the logging call returns.

Each process has a folder, `<state>/journals/<host>-<pid>-<random>`, mode 0700. The folder holds segments of JSON lines
(see `records`), `acked` with the number of the last accepted entry, and `lock`. The process holds the lock while it is
alive.

Lines are copied into a memory-mapped file. They survive SIGKILL just as with `os.write`, and the copy keeps the
interpreter lock. A write that releases this lock beside a computing thread waits up to 5 ms to get it back (measured:
495 us a line against 0.4). The space of a segment is allocated before it is mapped: a write to a mapped page without
space would kill the process.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import secrets
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from autogen_team._process import activity, identity
from autogen_team._process.folders import private_folder
from autogen_team._process.forking import ForkSafeLock, call_in_child
from autogen_team._spool import files, reader, records
from autogen_team._spool.wakeup import Wakeup

JOURNALS, LINES = "journals", "lines"
"""Folders below the state folder: journals for MLflow, and journals of log lines for an OpenTelemetry collector."""
SEGMENT = 2**20
"""Bytes of a segment; a longer entry gets a segment of its own size."""
_RETRY = 1.0
"""Seconds between a failed creation of a segment and the next attempt."""

_report = logging.getLogger("autogen_team")


class JournalError(OSError):
    """The entry is not on disk: space or permission is missing, or the journal is closed."""


def folder_of(state: Path) -> Path:
    """Return the folder that holds the journals of all processes."""
    return state / JOURNALS


def boot_id() -> str:
    """Return the id of the machine's current boot; empty where the system does not provide one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def started_at(pid: int) -> float | None:
    """Return the start time of a process, to tell it from a later process with the same id; None if it does not exist.

    The unit is the system's own: on Linux, ticks since boot, which clock changes do not affect. A zombie (dead, but its
    parent has not waited for it yet) does not count as existing.
    """
    with suppress(OSError, IndexError, ValueError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else float(fields[18])
    if Path("/proc/self/stat").exists():
        return None
    import psutil  # imported here, because Linux does not need it

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_stopped(pid: int) -> bool:
    """Return whether a signal or a debugger has stopped a process."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


class Journal:
    """The journal of this process; safe to use from any thread, in a signal handler, and after a fork.

    Nothing is on disk before the first entry. A forked child gets its own journal with its first entry.
    """

    def __init__(
        self,
        state: Path,
        *,
        uri: str,
        kind: str = JOURNALS,
        about: Callable[[], Mapping[str, Any]] = dict,
        most: int | None = None,
    ) -> None:
        """Prepare a journal in the folder `kind` of `state` for the store `uri`, which must not contain a password.

        `about` returns more fields for the header of each segment. Beyond `most` bytes, the oldest segments are
        removed, whether or not the store has accepted them; by default, there is no limit.
        """
        self._parent = state / kind
        self._uri = uri
        self.until = 0.0
        """Claims of joined runs up to this time, in seconds since 1970, are those of this process's own attempt."""
        self._about = about
        self._most = most
        self.on_begin: Callable[[Path], None] | None = None
        """Called with the folder once it is created, before the first entry is written."""
        self.after_fork()

    def after_fork(self) -> None:
        """Start with an empty journal, and leave the parent's folder to the parent."""
        for descriptor in (getattr(self, "_lock_file", None), getattr(self, "_acked_file", None)):
            if descriptor is not None:
                os.close(descriptor)
        self._is_closed = False
        # Reentrant, because a signal handler may log during a write.
        self._lock = threading.RLock()
        self._more = Wakeup()
        self._is_read = True
        self._writing = False
        self._interrupting: deque[str] = deque()
        self.folder: Path | None = None
        self._opening: dict[str, str] = {}
        self._created: dict[str, str] = {}
        self.joined: dict[str, int] = {**getattr(self, "joined", {}), **getattr(self, "_attempts", {})}
        """The attempt in which this process works for each run of another one; in a forked child, of its parent."""
        self._attempts: dict[str, int] = {}
        self._ended: deque[tuple[str, int]] = deque()
        """Runs that were closed, each with the number of the entry that closed it."""
        self._open: dict[str, dict[str, Any]] = {}
        self.number = 0
        """The number of the last entry."""
        self.acked = 0
        self._map: mmap.mmap | None = None
        self._segment = self._position = self._size = 0
        self._sealed: list[tuple[Path, int, int]] = []
        """The path of each earlier segment, the number of its last entry, and its size in bytes."""
        self.dropped = 0
        """Number of entries that were removed because of the limit before the store had accepted them."""
        self._done = 0
        """The number of the last entry that was accepted or dropped."""
        self._headers: deque[int] = deque()
        """The numbers of later headers, which are entries too."""
        self._lock_file: int | None = None
        self._acked_file: int | None = None
        self._retry_at = 0.0

    def append(self, body: str) -> int:
        """Write an entry, and return its number.

        Raises:
            JournalError: the entry cannot be written.

        """
        with self._lock:
            if self._writing:  # in a signal handler: the interrupted call writes the entry
                self._interrupting.append(body)
                return self.number + 1 + len(self._interrupting)
            self._writing = True
            try:
                self._put(body)
                while self._interrupting:
                    self._put(self._interrupting.popleft())
                number = self.number
            finally:
                self._writing = False
        while self._interrupting:  # a signal handler added an entry after the loop above
            with suppress(IndexError):  # a later signal handler has written it already
                self.append(self._interrupting.popleft())
        if self._is_read:
            self._is_read = False
            self._more.set()
        return number

    def begin(self) -> Path:
        """Return the folder; create it and its first segment if they do not exist yet.

        Raises:
            JournalError: the folder or the segment cannot be created.

        """
        with self._lock:
            if self._map is None:
                self._begin_segment(0)
            assert self.folder is not None
            return self.folder

    def run_opening(self, mark: str, experiment_id: str) -> None:
        """Record that a run with the tag value `mark` is about to be created."""
        self._opening[mark] = experiment_id
        self.append(records.body("opening", mark=mark, experiment=experiment_id))

    def run_opened(self, run_id: str, *, mark: str | None, name: str, experiment: str, attempt: int = 1) -> None:
        """Record that this process has the run open, so that another process can close it if this one dies.

        `attempt` is the number of this start of the job. A run that belongs to a later start is not closed.
        """
        if mark is not None:
            self._opening.pop(mark, None)
        about = {"name": name, "experiment": experiment} | ({"attempt": attempt} if attempt > 1 else {})
        self._open[run_id] = about
        self._attempts[run_id] = attempt
        activity.opened(run_id, name)
        self.append(records.body("open", run=run_id, mark=mark, **about))

    def run_joined(self, run_id: str, attempt: int) -> None:
        """Record that this process works for a run that another process of this attempt of the job has open.

        Nothing is written before the first entry.

        Raises:
            JournalError: the entry cannot be written.

        """
        if attempt > self.joined.get(run_id, 0):
            self.joined[run_id] = attempt
            if self.folder is not None:
                self.append(records.body("joined", run=run_id, attempt=attempt))

    def run_created(self, local: str, real: str) -> None:
        """Record the store's id of a run that was started while the store was unreachable."""
        self._created[local] = real
        self.append(records.body("created", run=local, id=real))

    def run_closed(self, run_id: str) -> None:
        """Record that no other process needs to close the run; call this after writing the entry that closes it."""
        self._open.pop(run_id, None)
        self._ended.append((run_id, self.number))
        activity.closed(run_id)

    def run_left(self, run_id: str) -> None:
        """Record that this process no longer has the run open, which another process will close."""
        self._open.pop(run_id, None)
        activity.closed(run_id)

    def open_runs(self) -> list[str]:
        """Return the ids of the runs that this process has open, in the order in which it opened them."""
        return list(self._open)

    def open_attempts(self) -> dict[str, int]:
        """Return the attempt number of each open run, by run id."""
        return {run_id: about.get("attempt", 1) for run_id, about in list(self._open.items())}

    def attempts(self) -> dict[str, int]:
        """Return the attempt of each run that this process has opened, until the store has the end of the run."""
        while self._ended and self._ended[0][1] <= self.acked:
            run_id, _ = self._ended.popleft()
            if run_id not in self._open:  # it may be open again
                self._attempts.pop(run_id, None)
        return dict(self._attempts)

    @property
    def waiting(self) -> int:
        """Number of entries, without headers, that the store has not accepted."""
        return self.number - self._done - len(self._headers)

    def wait(self, timeout: float | None) -> None:
        """Wait for an entry written since the last call, at most `timeout` seconds; for a single reader."""
        self._more.wait(timeout)
        self._is_read = True

    def wake(self) -> None:
        """Make `wait` return."""
        self._more.set()

    def path(self, segment: int) -> Path:
        """Return the file of a segment."""
        assert self.folder is not None
        return self.folder / reader.segment_name(segment)

    def ack(self, number: int) -> None:
        """Record that the store has accepted the entries up to `number`, and remove segments without later entries."""
        with self._lock:
            self.acked = number
            self._settle(number)
            if self._acked_file is not None:
                os.pwrite(self._acked_file, records.acked_line(number), 0)
            while self._sealed and self._sealed[0][1] <= number:
                self._sealed.pop(0)[0].unlink(missing_ok=True)

    def sync(self) -> None:
        """Sync the current segment to disk, so that it survives a crash of the machine too."""
        with self._lock:
            path = None if self._map is None else self.path(self._segment)
        if path is None:
            return
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # outside of the lock: it may take long
            finally:
                os.close(descriptor)

    def close(self) -> Path | None:
        """Stop writing, and remove the folder unless it holds undelivered entries or files.

        Returns:
            The folder if it was kept, else None.

        """
        with self._lock:
            if self.folder is None:
                self._is_closed = True
                return None
            is_empty = self.acked == self.number and not files.waiting(self.folder)
            if not is_empty:
                with suppress(JournalError):
                    self.append(records.body("closed", at=int(time.time() * 1000)))
            self._is_closed = True
            self._seal()
            folder = self.folder
            if is_empty:
                remove(folder)
            for descriptor in (self._acked_file, self._lock_file):
                if descriptor is not None:
                    os.close(descriptor)
            self._lock_file = self._acked_file = self.folder = None
            for run_id in self._open:
                activity.closed(run_id)
            self._open.clear()
            self._opening.clear()
            return None if is_empty else folder

    def _put(self, body: str) -> None:
        mapped, position = self._map, self._position
        if mapped is not None and position < self._size and mapped[position]:
            self._count_interrupted()
            position = self._position
        line = records.line(self.number + 1, body)
        end = position + len(line)
        if mapped is None or end > self._size:
            self._begin_segment(len(line))
            line = records.line(self.number + 1, body)  # the header of the new segment has taken a number
            end = self._position + len(line)
        self._write(line, end)

    def _write(self, line: bytes, end: int) -> None:
        # An interrupt in between leaves a line that is not counted yet; see `_count_interrupted`.
        self._map[self._position : end] = line  # type: ignore[index]  # `_put` has mapped a segment
        self.number += 1
        self._position = end

    def _count_interrupted(self) -> None:
        """Count a line whose write an exception in a signal handler interrupted: it may have been shipped."""
        assert self._map is not None
        self._position = self._map.find(b"\n", self._position) + 1
        self.number += 1

    def _begin_segment(self, length: int) -> None:
        if self._is_closed:
            raise JournalError("the journal is closed")
        now = time.monotonic()
        if now < self._retry_at:
            raise JournalError("the journal cannot be written")
        try:
            if self.folder is None:
                self._begin_folder()
            self._map_segment(length)
        except OSError as error:
            self._retry_at = now + _RETRY
            raise JournalError(error.errno, f"the journal cannot be written: {error.strerror}") from error

    def _begin_folder(self) -> None:
        folder = self._parent / f"{identity.process_name()}-{secrets.token_hex(4)}"
        private_folder(folder)
        with ExitStack() as undo:  # a failed or interrupted attempt leaves nothing behind
            undo.callback(remove, folder)
            lock = take_lock(folder)
            if lock is not None:
                undo.callback(os.close, lock)
            acked = os.open(folder / "acked", os.O_CREAT | os.O_RDWR, 0o600)
            undo.callback(os.close, acked)
            os.pwrite(acked, records.acked_line(0), 0)
            if self.on_begin is not None:
                self.on_begin(folder)
            undo.pop_all()
        self._lock_file, self._acked_file, self.folder = lock, acked, folder

    def _map_segment(self, length: int) -> None:
        header = self._header()
        size = max(SEGMENT, len(records.line(self.number + 1, header)) + length + 32)
        path = self.path(self._segment + 1)
        descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600)
        try:
            _allocate(descriptor, size)
            mapped = mmap.mmap(descriptor, size)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        self._seal()
        while self._most is not None and self._sealed and sum(one[2] for one in self._sealed) + size > self._most:
            self._drop(*self._sealed.pop(0))
        self._map, self._segment, self._position, self._size = mapped, self._segment + 1, 0, size
        line = records.line(self.number + 1, header)
        self._headers.append(self.number + 1)
        self._write(line, len(line))

    def _drop(self, path: Path, number: int, _: int) -> None:
        path.unlink(missing_ok=True)
        waiting = self.waiting
        self._settle(number)
        self.dropped += waiting - self.waiting

    def _settle(self, number: int) -> None:
        self._done = max(self._done, number)
        while self._headers and self._headers[0] <= number:
            self._headers.popleft()

    def _header(self) -> str:
        return records.body(
            "journal",
            version=records.VERSION,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=started_at(os.getpid()),
            boot=boot_id(),
            uri=self._uri,
            at=int(time.time() * 1000),
            open=[{"run": run_id, **facts} for run_id, facts in self._open.items()],
            joined=self.joined or None,
            until=self.until or None,
            created=self._created,
            opening=[{"mark": mark, "experiment": experiment_id} for mark, experiment_id in self._opening.items()],
            **self._about(),
        )

    def _seal(self) -> None:
        if self._map is not None:
            path, position = self.path(self._segment), self._position
            self._map.close()
            self._map = None
            with suppress(OSError):
                os.truncate(path, position)
            self._sealed.append((path, self.number, position))


def take_lock(folder: Path) -> int | None:
    """Take the lock of a journal and return its descriptor; None if another process holds it.

    The lock belongs to the process: a forked child does not hold it, and it is released however the process ends. Two
    threads would both get it, and the first to close any descriptor of the file would release it for both. `take_over`
    prevents that.
    """
    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    if os.name == "posix" and _is_held(descriptor, os.F_TLOCK):
        os.close(descriptor)
        return None
    return descriptor


def _is_held(descriptor: int, command: int) -> bool:
    """Run a command of `lockf`, and return whether another process holds the lock.

    The answer is False where the file system has no locks (Lustre without -o flock).
    """
    try:
        os.lockf(descriptor, command, 0)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def is_locked(folder: Path) -> bool:
    """Return whether another process holds the lock of a journal, or a thread of this process has taken it over.

    Do not call this for the journal that this process writes: the test would release its lock.
    """
    if folder in _taken_over:
        return True
    with suppress(FileNotFoundError):
        descriptor = os.open(folder / "lock", os.O_RDWR)
        try:
            return os.name == "posix" and _is_held(descriptor, os.F_TEST)
        finally:
            os.close(descriptor)
    return False


def take_over(folder: Path) -> int | None:
    """Take the lock of a journal to recover it, and sign the lock; None if another process or thread has it.

    Without the signature, the holder of the lock is taken for the writer of the journal.

    Raises:
        FileNotFoundError: another process has recovered the journal and removed it.

    """
    with _taking:
        if folder in _taken_over:
            return None
        lock = take_lock(folder)
        if lock is None:
            return None
        _taken_over.add(folder)
    with suppress(OSError):  # a full disk: the lock then looks like the writer's
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()} {socket.gethostname()}".encode())
    return lock


def give_back(folder: Path, lock: int) -> None:
    """Release a journal that this process has taken over, so that other processes can recover the rest."""
    with _taking:
        _taken_over.discard(folder)
        os.close(lock)


_taking = ForkSafeLock()
_taken_over: set[Path] = set()
"""Journals that a thread of this process is recovering; other threads must not touch their locks."""
call_in_child(_taken_over.clear)  # the locks are the parent's


def recoverer(folder: Path) -> tuple[int, str] | None:
    """Return the id and the host of the process that last took the journal over; None if that is unknown."""
    with suppress(OSError, ValueError):
        pid, host = (folder / "lock").read_text().split()
        return int(pid), host
    return None


def remove(folder: Path) -> None:
    """Remove a journal if it exists; the lock goes last, so that a half-removed journal is still locked."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":
            path.unlink(missing_ok=True)
    (folder / "lock").unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _allocate(descriptor: int, size: int) -> None:
    """Reserve the space, or raise OSError; a write to a mapped page without space would raise SIGBUS."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        else:
            return
    if os.write(descriptor, bytes(size)) < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
