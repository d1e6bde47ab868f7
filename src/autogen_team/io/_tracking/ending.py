"""How a job ends: what its exception and its signals say about the status of its run.

A signal that asks the process to end is turned into an exception in the main thread, so that `with` and `finally` of
the job run, the run is closed as KILLED, and the process exits with 128 plus the number of the signal. A handler that
was there before is called instead and decides.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from autogen_team.io._job import Status
from autogen_team.io._redact import mask

_NAMES = ("SIGTERM", "SIGHUP")  # Ctrl-C already is an exception: KeyboardInterrupt
_LONGEST_REASON = 500

_received: signal.Signals | None = None
_closing = 0
_guarded = False


class Terminated(SystemExit):
    """A signal asked the process to end; exits with 128 plus its number."""

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(128 + signum)
        self.signal = signum


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `Terminated` while inside; does nothing off the main thread or inside itself."""
    global _guarded, _received
    if _guarded or threading.current_thread() is not threading.main_thread():
        yield
        return
    _guarded, _received = True, None
    previous = {}
    for signum in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
        handler = signal.getsignal(signum)
        # SIG_IGN is somebody's decision (nohup), None is a handler that Python does not know.
        if handler in (signal.SIG_IGN, None):
            continue
        previous[signum] = handler
        signal.signal(signum, _handler(handler))
    ours = {signum: signal.getsignal(signum) for signum in previous}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            if signal.getsignal(signum) is ours[signum]:
                signal.signal(signum, handler)
        _guarded, _received = False, None


def _handler(previous: object) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        global _received
        _received = signal.Signals(number)
        if callable(previous):
            previous(number, frame)
        elif not _closing:  # the closing of a run is bounded in time: let it finish
            raise Terminated(_received)

    return handle


@contextmanager
def closing() -> Iterator[None]:
    """Put off `Terminated` while a run is being closed."""
    global _closing
    _closing += 1
    try:
        yield
    finally:
        _closing -= 1


def verdict(error: BaseException | None) -> tuple[Status, str | None]:
    """Return the status of a run that `error` has ended, and the reason in a few words, secrets masked."""
    if error is None:
        return "FINISHED", None
    if isinstance(error, Terminated):
        return "KILLED", error.signal.name
    if _received is not None and not isinstance(error, Exception):
        return "KILLED", _received.name
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", "SIGINT"
    if isinstance(error, SystemExit):
        if error.code is None or error.code == 0:
            return "FINISHED", None
        text = f"exit status {error.code}" if isinstance(error.code, int) else f"exit: {error.code}"
        return "FAILED", mask(text)[:_LONGEST_REASON]
    if isinstance(error, Exception):
        text = f"{type(error).__name__}: {_text(error)}"
        return "FAILED", mask(text)[:_LONGEST_REASON].removesuffix(": ")
    return "KILLED", type(error).__name__  # asyncio.CancelledError, GeneratorExit: somebody wanted no more of it


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:
        return "its message cannot be shown"
