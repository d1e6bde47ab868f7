"""Time of the last activity of this process, in a file that another process reads.

Metrics, log lines, output and `GlobalContext.progress` update it. The file is mapped into memory. So an update takes
neither a lock nor a system call, and a reader does not need this interpreter.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from autogen_team._process import Undo
from autogen_team._process.forking import call_in_child

_FORM = Struct("=dd")
_pack, _now = Struct("=d").pack_into, time.monotonic
_clock: mmap.mmap | None = None
_opened: dict[str, str] = {}
"""Names of the runs that this process has open, by run id."""
_runs_changed: Callable[[], None] | None = None


class Clock(NamedTuple):
    """Times of a process on the monotonic clock, which all processes of a machine share."""

    moved: float
    """Time of the last activity."""
    quiet_until: float
    """End of the announced silence; 0 if none is announced."""


def note() -> None:
    """Record activity; for hot paths."""
    if _clock is not None:
        _pack(_clock, 0, _now())


def note_entry(body: str) -> None:
    """Record activity for a journal entry, unless it is a sample of system metrics."""
    if _clock is not None and '"system/' not in body:
        note()


def progress(expect_within: float | None) -> None:
    """Record activity, and announce silence for that many seconds; None withdraws an earlier announcement."""
    if _clock is not None:
        now = _now()
        _FORM.pack_into(_clock, 0, now, 0.0 if expect_within is None else now + expect_within)


@contextmanager
def unnoticed() -> Iterator[None]:
    """Restore the clock after the block, so that reports about the job's silence do not count as activity."""
    before = None if _clock is None else _FORM.unpack_from(_clock)
    yield
    if _clock is not None and before is not None:
        _FORM.pack_into(_clock, 0, *before)


def start(path: Path) -> Undo:
    """Keep the clock in this file until the returned function is called.

    Raises:
        OSError: the file cannot be written.

    """
    global _clock
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.write(descriptor, _FORM.pack(_now(), 0.0))  # no hole: with a full disk, filling it raises SIGBUS
        _clock = mmap.mmap(descriptor, _FORM.size)
    finally:
        os.close(descriptor)
    return _leave


def read(path: Path) -> Clock | None:
    """Return the times in a clock file; None if it cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        data = file.read(_FORM.size)
        return Clock(*_FORM.unpack(data)) if len(data) == _FORM.size else None
    return None


def follow_runs(changed: Callable[[], None]) -> Undo:
    """Call `changed` whenever the process opens or closes a run, until the returned function is called."""
    global _runs_changed
    _runs_changed = changed
    return _forget_runs


def opened(run_id: str, name: str) -> None:
    """Record that this process has opened a run."""
    _opened[run_id] = name
    if _runs_changed is not None:
        _runs_changed()


def closed(run_id: str) -> None:
    """Record that this process has closed a run."""
    if _opened.pop(run_id, None) is not None and _runs_changed is not None:
        _runs_changed()


def open_runs() -> dict[str, str]:
    """Return the names of the runs that this process has open, by run id, oldest first."""
    return dict(_opened)


def _leave() -> None:
    global _clock
    _clock = None


def _forget_runs() -> None:
    global _runs_changed
    _runs_changed = None


def _after_fork() -> None:
    _leave()  # the clock is the parent's
    _forget_runs()
    _opened.clear()


call_in_child(_after_fork)
