"""The journal of a process: what it has to say to its store, on disk before the call that says it returns.

A folder for each process, `<state>/journals/<host>-<pid>-<random>`, 0700, in it segments of JSON lines (see `entries`),
`acked` with the number of the last entry that the store has taken, and `lock`, held for as long as the process lives.

Lines are copied into a file that is mapped into memory. That survives SIGKILL just as `os.write` does, and it keeps
the interpreter lock: a write that releases it, beside a thread that computes, waits for up to 5 ms to get it back
(measured: 495 us a line against 0.4). The space of a segment is allocated before it is mapped, because a mapped page
for which there is none would kill the process.
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
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from autogen_team.io import _job
from autogen_team.io._forking import ForkSafeLock, call_in_child
from autogen_team.io._tracking import entries
from autogen_team.io._tracking.wakeup import Wakeup

SEGMENT = 2**20
"""Bytes of a segment; a longer entry gets one of its own size."""
_RETRY = 1.0
"""Seconds after which a segment that could not be made is tried again."""

_report = logging.getLogger("autogen_team")


class JournalError(OSError):
    """The entry is not on disk: there is no space, or no permission."""


def folder_of(state: Path) -> Path:
    """Return where the journals of all processes are."""
    return state / "journals"


def boot_id() -> str:
    """Return what tells this run of the machine from the one before; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def started_at(pid: int) -> float | None:
    """Return when the process began, which tells it from a later one with the same id; None if there is none.

    In a unit of the system's own, on Linux ticks since its boot, which no change of the clock touches. A process that
    has died and that its parent has not asked about yet, a zombie, is none.
    """
    with suppress(OSError, IndexError, ValueError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else float(fields[18])
    if Path("/proc/self/stat").exists():
        return None
    import psutil  # here, because Linux does without

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


class Journal:
    """Where this process writes; safe to use from any thread, a signal handler, and after a fork.

    Nothing is on disk before the first entry. A forked child has a journal of its own from its first entry on.
    """

    def __init__(self, state: Path, *, uri: str) -> None:
        """Keep a journal below `state` for the store `uri`, which must hold no password."""
        self._state = state
        self._uri = uri
        self.on_begin: Callable[[Path], None] | None = None
        """Called with the folder when it has been made, before the first entry is written."""
        self.after_fork()

    def after_fork(self) -> None:
        """Leave the parent's folder to the parent."""
        for descriptor in (getattr(self, "_lock_file", None), getattr(self, "_acked_file", None)):
            if descriptor is not None:
                os.close(descriptor)
        self._is_closed = False
        # Reentrant, because a signal handler may log in the midst of a write.
        self._lock = threading.RLock()
        self._more = Wakeup()
        self._is_read = True
        self._writing = False
        self._interrupting: deque[str] = deque()
        self.folder: Path | None = None
        self._opening: dict[str, str] = {}
        self._created: dict[str, str] = {}
        self._open: dict[str, dict[str, Any]] = {}
        self.number = 0
        """The number of the last entry."""
        self.acked = 0
        self._map: mmap.mmap | None = None
        self._segment = self._position = self._size = 0
        self._end = (1, 0)  # in one piece, for a reader that takes no lock
        self._sealed: list[tuple[Path, int]] = []
        self._lock_file: int | None = None
        self._acked_file: int | None = None
        self._retry_at = 0.0

    def append(self, body: str) -> int:
        """Write an entry, and return its number.

        Raises:
            JournalError: it cannot be written.

        """
        with self._lock:
            if self._writing:  # by the code that this signal handler interrupts, which will write it in a moment
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
        while self._interrupting:  # it came in the very last moment
            with suppress(IndexError):  # and a signal handler that came still later has written it
                self.append(self._interrupting.popleft())
        if self._is_read:
            self._is_read = False
            self._more.set()
        return number

    def begin(self) -> Path:
        """Return the folder, made if there is none yet.

        Raises:
            JournalError: it cannot be made.

        """
        with self._lock:
            if self._map is None:
                self._begin_segment(0)
            assert self.folder is not None
            return self.folder

    def run_opening(self, mark: str, experiment_id: str) -> None:
        """Note that a run is about to be made, which will carry the mark."""
        self._opening[mark] = experiment_id
        self.append(entries.body("opening", mark=mark, experiment=experiment_id))

    def run_opened(self, run_id: str, *, mark: str | None, name: str, experiment: str) -> None:
        """Note that this process has the run open, so that somebody closes it if the process dies."""
        if mark is not None:
            self._opening.pop(mark, None)
        self._open[run_id] = {"name": name, "experiment": experiment}
        self.append(entries.body("open", run=run_id, mark=mark, name=name, experiment=experiment))

    def run_created(self, local: str, real: str) -> None:
        """Note what the store calls a run that was begun without it."""
        self._created[local] = real
        self.append(entries.body("created", run=local, id=real))

    def run_closed(self, run_id: str) -> None:
        """Note that the run needs no closing by others; call after the entry that closes it."""
        self._open.pop(run_id, None)

    def open_runs(self) -> list[str]:
        """Return the ids of the runs that this process has open, in the order in which it opened them."""
        return list(self._open)

    def wait(self, timeout: float | None) -> None:
        """Return when there is an entry since the last call, or after `timeout` seconds; for one reader."""
        self._more.wait(timeout)
        self._is_read = True

    def wake(self) -> None:
        """Let `wait` return."""
        self._more.set()

    def end(self) -> tuple[int, int]:
        """Return the segment that is written, and how many of its bytes are."""
        return self._end

    def path(self, segment: int) -> Path:
        """Return the file of a segment."""
        assert self.folder is not None
        return self.folder / f"{segment:06d}.jsonl"

    def ack(self, number: int) -> None:
        """Note that the store has taken every entry up to `number`, and remove the segments that hold no other."""
        with self._lock:
            self.acked = number
            if self._acked_file is not None:
                os.pwrite(self._acked_file, acked_line(number), 0)
            while self._sealed and self._sealed[0][1] <= number:
                self._sealed.pop(0)[0].unlink(missing_ok=True)

    def sync(self) -> None:
        """Let the present segment survive the death of the machine too."""
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
        """Write no more; return the folder if it holds entries that the store has not taken, else remove it."""
        with self._lock:
            if self.folder is None:
                self._is_closed = True
                return None
            if self.acked < self.number:
                with suppress(JournalError):
                    self.append(entries.body("closed", at=int(time.time() * 1000)))
            self._is_closed = True
            self._seal()
            folder, is_empty = self.folder, self.acked == self.number
            if is_empty:
                remove(folder)
            for descriptor in (self._acked_file, self._lock_file):
                if descriptor is not None:
                    os.close(descriptor)
            self._lock_file = self._acked_file = self.folder = None
            self._open.clear()
            self._opening.clear()
            return None if is_empty else folder

    def _put(self, body: str) -> None:
        line = entries.line(self.number + 1, body)
        end = self._position + len(line)
        if self._map is None or end > self._size:
            self._begin_segment(len(line))
            line = entries.line(self.number + 1, body)  # the header of the segment has taken a number
            end = self._position + len(line)
        self._write(line, end)

    def _write(self, line: bytes, end: int) -> None:
        # The number counts once the line is there: an interrupt in between leaves a line that the next one overwrites.
        self._map[self._position : end] = line  # type: ignore[index]  # there is one, see `_put`
        self.number += 1
        self._position = end
        self._end = (self._segment, end)

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
        folder = folder_of(self._state) / f"{_job.process_name()}-{secrets.token_hex(4)}"
        for each in (self._state, folder.parent, folder):  # one by one, or `parents` would leave one open to others
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as undo:  # what fails, or is interrupted, is begun anew
            undo.callback(remove, folder)
            lock = take_lock(folder)
            if lock is not None:
                undo.callback(os.close, lock)
            acked = os.open(folder / "acked", os.O_CREAT | os.O_RDWR, 0o600)
            undo.callback(os.close, acked)
            os.pwrite(acked, acked_line(0), 0)
            if self.on_begin is not None:
                self.on_begin(folder)
            undo.pop_all()
        self._lock_file, self._acked_file, self.folder = lock, acked, folder

    def _map_segment(self, length: int) -> None:
        header = self._header()
        size = max(SEGMENT, len(entries.line(self.number + 1, header)) + length + 32)
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
        self._map, self._segment, self._position, self._size = mapped, self._segment + 1, 0, size
        line = entries.line(self.number + 1, header)
        self._write(line, len(line))

    def _header(self) -> str:
        return entries.body(
            "journal",
            version=entries.VERSION,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=started_at(os.getpid()),
            boot=boot_id(),
            uri=self._uri,
            at=int(time.time() * 1000),
            open=[{"run": run_id, **facts} for run_id, facts in self._open.items()],
            created=self._created,
            opening=[{"mark": mark, "experiment": experiment_id} for mark, experiment_id in self._opening.items()],
        )

    def _seal(self) -> None:
        if self._map is not None:
            path, position = self.path(self._segment), self._position
            self._map.close()
            self._map = None
            with suppress(OSError):
                os.truncate(path, position)
            self._sealed.append((path, self.number))


def acked_line(number: int) -> bytes:
    """Return the content of `acked`, a line like that of an entry; of one length, to be replaced in one piece."""
    return entries.line(number, '"op":"acked"}' + " " * (20 - len(str(number))))


def take_lock(folder: Path) -> int | None:
    """Take the lock of a journal and return its descriptor; None if another process holds it.

    The lock is the process's own, so a forked child does not hold it; it ends with the process, however that ends. Two
    threads would both get it, and the first to close any descriptor of the file would lose it for both: `take_over`.
    """
    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    if os.name == "posix" and _is_held(descriptor, os.F_TLOCK):
        os.close(descriptor)
        return None
    return descriptor


def _is_held(descriptor: int, command: int) -> bool:
    """Tell whether another process holds the lock; where the file system has none (Lustre without -o flock), nobody."""
    try:
        os.lockf(descriptor, command, 0)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def is_locked(folder: Path) -> bool:
    """Tell whether anybody else holds the lock of a journal; to ask for this process's own would cost it the lock."""
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
    """Take the lock to recover the journal, and sign it, else its writer is who holds it; None if somebody else has it.

    Raises:
        FileNotFoundError: somebody has recovered it, and removed it.

    """
    with _taking:
        if folder in _taken_over:
            return None
        lock = take_lock(folder)
        if lock is None:
            return None
        _taken_over.add(folder)
    with suppress(OSError):  # a full disk: then it looks as if the writer had it
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()} {socket.gethostname()}".encode())
    return lock


def give_back(folder: Path, lock: int) -> None:
    """Let others recover what is left of a journal that this process has taken over."""
    with _taking:
        _taken_over.discard(folder)
        os.close(lock)


_taking = ForkSafeLock()
_taken_over: set[Path] = set()
"""The journals that a thread of this process recovers, whose locks the others must not touch."""
call_in_child(_taken_over.clear)  # the locks are the parent's


def recoverer(folder: Path) -> tuple[int, str] | None:
    """Return the process that has taken the journal over last, and its host."""
    with suppress(OSError, ValueError):
        pid, host = (folder / "lock").read_text().split()
        return int(pid), host
    return None


def remove(folder: Path) -> None:
    """Remove a journal if it is there, the lock last, so that whoever finds it half removed finds it locked."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":
            path.unlink(missing_ok=True)
    (folder / "lock").unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _allocate(descriptor: int, size: int) -> None:
    """Reserve the space, or raise OSError; a mapped page without would be SIGBUS."""
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
