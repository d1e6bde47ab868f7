"""When this process was last seen to do something: a clock in a file, which another process reads.

Metrics, log lines, output and `GlobalContext.progress` set the clock. It is a file mapped into memory. So setting it
takes neither a lock nor a system call, and reading it takes nothing from the interpreter.
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
"""The names of the runs that this process has open, by id."""
_runs_changed: Callable[[], None] | None = None


class Clock(NamedTuple):
    """What the clock of a process says, by the monotonic clock, which all processes of a machine share."""

    moved: float
    """When the process was last seen to do something."""
    quiet_until: float
    """Until when it has announced to be silent; 0 if it has not."""


def note() -> None:
    """Set the clock; for hot paths."""
    if _clock is not None:
        _pack(_clock, 0, _now())


def note_entry(body: str) -> None:
    """Set the clock for an entry of the journal, unless it is a sample of the machine."""
    if _clock is not None and '"system/' not in body:
        note()


def progress(expect_within: float | None) -> None:
    """Set the clock, and announce to be silent for that many seconds; None takes an earlier announcement back."""
    if _clock is not None:
        now = _now()
        _FORM.pack_into(_clock, 0, now, 0.0 if expect_within is None else now + expect_within)


@contextmanager
def unnoticed() -> Iterator[None]:
    """Keep what the block says about the silence of the job from ending it."""
    before = None if _clock is None else _FORM.unpack_from(_clock)
    yield
    if _clock is not None and before is not None:
        _FORM.pack_into(_clock, 0, *before)


def start(path: Path) -> Undo:
    """Keep the clock in this file, until the returned function is called.

    Raises:
        OSError: the file cannot be written.

    """
    global _clock
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.write(descriptor, _FORM.pack(_now(), 0.0))  # no hole, because a page without space cannot be written
        _clock = mmap.mmap(descriptor, _FORM.size)
    finally:
        os.close(descriptor)
    return _leave


def read(path: Path) -> Clock | None:
    """Return what the clock in a file says; None if it cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        data = file.read(_FORM.size)
        return Clock(*_FORM.unpack(data)) if len(data) == _FORM.size else None
    return None


def follow_runs(changed: Callable[[], None]) -> Undo:
    """Call this whenever the process opens or closes a run, until the returned function is called."""
    global _runs_changed
    _runs_changed = changed
    return _forget_runs


def opened(run_id: str, name: str) -> None:
    """Note that this process has opened a run."""
    _opened[run_id] = name
    if _runs_changed is not None:
        _runs_changed()


def closed(run_id: str) -> None:
    """Note that it has closed the run."""
    if _opened.pop(run_id, None) is not None and _runs_changed is not None:
        _runs_changed()


def open_runs() -> dict[str, str]:
    """Return the names of the runs that this process has open, by id, in the order in which it opened them."""
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
