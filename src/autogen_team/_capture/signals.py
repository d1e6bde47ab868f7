"""How a job ends: its exception and its signals decide the status of its run.

A signal that asks the process to end becomes an exception in the main thread. So the job's `with` and `finally` blocks
are executed, and the run is closed as KILLED. The process exits with 128 plus the number of the signal. Under a
scheduler, this applies to each signal by which schedulers announce the end of a job. If the job already has a handler
for the signal, that handler is called instead and decides. While a run is being opened or closed, signals are deferred.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from autogen_team._process import grace, schedulers, stopping
from autogen_team._process.forking import call_in_child
from autogen_team._process.run_events import JobEnded, Status
from autogen_team._redact import mask

Handler: TypeAlias = Callable[[int, FrameType | None], None]

_NAMES = ("SIGTERM", "SIGHUP")  # Ctrl-C is an exception already: KeyboardInterrupt
_CANCELLED = frozenset({"CancelledError", "Cancelled"})  # asyncio's, and trio's
_LONGEST_REASON = 500
_REPLACED = "_autogen_team_replaced"
"""Attribute of our handlers that holds the handler that was installed before."""

_received: signal.Signals | None = None
_fatal: signal.Signals | None = None
"""The received signal, if it ends this process; it does not if a handler of the job has handled it and returned."""
_guards = 0
"""Number of `signals_raise` blocks that are active."""
_installed: dict[signal.Signals, Handler] = {}
_held = 0
_deferred: BaseException | None = None
_interrupt_handler: object = None


def signal_name(number: int) -> str:
    """Return the name of a signal, or `signal` and its number if it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


class Terminated(SystemExit):
    """A signal asked the process to end; exits with 128 plus its number."""

    def __init__(self, signum: int, reason: str | None = None) -> None:
        super().__init__(128 + signum)
        self._number = signum
        self.signal = signal_name(signum)
        self.reason = _reason_of(self.signal) if reason is None else reason
        """Why the process was asked to end."""

    def __reduce__(self) -> tuple[type[Terminated], tuple[int, str]]:
        """Keep number and reason: a pool sends the exception of a worker to the job, which may not know the reason."""
        return type(self), (self._number, self.reason)


def fatal_signal() -> signal.Signals | None:
    """Return the signal that is about to end this process; None if there is none."""
    return _fatal


@contextmanager
def signals_raise() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM and SIGHUP while any such block is active; do nothing outside the main thread."""
    global _guards, _received, _fatal
    if not _is_main_thread():
        yield
        return
    if not _guards:
        _received = _fatal = None
        _install()
    _guards += 1
    try:
        yield
    finally:
        _guards = max(0, _guards - 1)  # a forked child may leave a block that its parent has entered
        if not _guards:
            _give_back()
            _received = _fatal = None


def _install() -> None:
    _installed.clear()
    announced = schedulers.ANNOUNCED if schedulers.find() is not None else ()
    for signum in _signals(*_NAMES, *(name for name in announced if name not in _NAMES)):
        if signum.name not in _NAMES and _is_handled_in_c(signum):
            continue
        previous = signal.getsignal(signum)
        previous = getattr(previous, _REPLACED, previous)  # our own handler, inherited from the parent process
        # SIG_IGN is a deliberate choice (nohup), None is a handler that Python does not know.
        if previous not in (signal.SIG_IGN, None):
            _installed[signum] = _handler(previous, os.getpid())
            signal.signal(signum, _installed[signum])


def _signals(*names: str) -> Iterator[signal.Signals]:
    return (getattr(signal, name) for name in names if hasattr(signal, name))


def _is_handled_in_c(signum: signal.Signals) -> bool:
    """Return whether the signal has a handler that Python does not know, such as the one of faulthandler."""
    if signal.getsignal(signum) is not signal.SIG_DFL:
        return False
    with contextlib.suppress(OSError, StopIteration, ValueError), Path("/proc/self/status").open() as lines:
        caught = int(next(line for line in lines if line.startswith("SigCgt:")).split()[1], 16)
        return bool(caught >> (signum - 1) & 1)
    return True


def _give_back() -> None:
    while _installed:
        signum, ours = _installed.popitem()
        if signal.getsignal(signum) is ours:
            with contextlib.suppress(ValueError):  # only the main thread may set handlers
                signal.signal(signum, getattr(ours, _REPLACED))


def _handler(previous: object, owner: int) -> Handler:
    def handle(number: int, frame: FrameType | None) -> None:
        global _deferred, _received, _fatal
        signum = signal.Signals(number)
        if os.getpid() != owner and not callable(previous):
            # A forked child has no run to close: it dies as it would without our handler.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        if signum is signal.SIGTERM and _fatal is not None and stopping.reason() is not None:
            stopping.begin()  # the first SIGTERM may have had another reason
            return  # a launcher repeats the signal, which must not end the `finally` blocks
        _received = signum
        if callable(previous):
            try:
                previous(number, frame)
            except BaseException:
                _fatal = signum
                grace.begin()
                stopping.begin()
                raise
            if signum is not signal.SIGTERM:  # by convention, SIGHUP makes a job reload its configuration
                _received = None
            return
        _fatal = signum
        grace.begin()
        stopping.begin()
        if _held:
            _deferred = Terminated(signum)
        else:
            raise Terminated(signum)

    setattr(handle, _REPLACED, previous)
    return handle


def _after_fork() -> None:
    global _guards, _received, _fatal, _held, _deferred, _interrupt_handler
    _guards, _received, _fatal = 0, None, None  # the parent's handlers do not raise in a child
    _held, _deferred = 0, None  # another thread may have forked while the main thread was opening a run
    if _interrupt_handler is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _interrupt_handler = None


call_in_child(_after_fork)


def hold() -> None:
    """Defer signals, including Ctrl-C, until `release`; do nothing outside the main thread."""
    global _held, _interrupt_handler
    if not _is_main_thread():
        return
    _held += 1
    if _held == 1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _interrupt_handler = signal.signal(signal.SIGINT, _defer_interrupt)


def release(*, leaving: bool = False) -> None:
    """Raise the signal that was deferred since `hold`, unless the job is exiting anyway."""
    global _held, _interrupt_handler, _deferred
    if not _is_main_thread() or not _held:
        return
    _held -= 1
    if _held:
        return
    if _interrupt_handler is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _interrupt_handler = None
    deferred, _deferred = _deferred, None
    if deferred is not None and not leaving:
        raise deferred


def _defer_interrupt(_number: int, _frame: FrameType | None) -> None:
    global _deferred
    _deferred = KeyboardInterrupt()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def is_leaving(error: BaseException | None) -> bool:
    """Return whether this exception is about to end the process."""
    return isinstance(error, (SystemExit, KeyboardInterrupt))


def verdict(error: BaseException | None) -> tuple[Status, str | None]:
    """Return the status of a run that `error` has ended, and a short reason with its secrets masked."""
    if error is None or isinstance(error, GeneratorExit):  # the consumer of a generator has stopped reading it
        return "FINISHED", None
    if isinstance(error, JobEnded):
        return error.status, None if error.reason is None else mask(error.reason)[:_LONGEST_REASON]
    if isinstance(error, Terminated):
        return "KILLED", error.reason
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", "SIGINT"
    if type(error).__name__ in _CANCELLED:
        return "KILLED", _reason_of(_received.name) if _received else type(error).__name__
    if isinstance(error, SystemExit):
        signum = _received or _raised_by(error)
        if signum is not None:
            return "KILLED", _reason_of(signum.name)
        if error.code is None or error.code == 0:
            return "FINISHED", None
        text = f"exit status {error.code}" if isinstance(error.code, int) else f"exit: {error.code}"
        return "FAILED", mask(text)[:_LONGEST_REASON]
    return of_exception(type(error).__name__, _text(error))


def _reason_of(name: str) -> str:
    """Return the reason why a signal was sent; its name if the reason is unknown."""
    return stopping.reason() or name if name == "SIGTERM" else name


def of_exception(kind: str, text: str) -> tuple[Status, str]:
    """Return the status of a run that was ended by an exception of this class and text, and a short reason."""
    if kind in _CANCELLED:
        return "KILLED", kind
    return "FAILED", mask(f"{kind}: {text}")[:_LONGEST_REASON].removesuffix(": ")


def _raised_by(error: BaseException) -> signal.Signals | None:
    """Return the signal whose handler raised `error`, if the job installed that handler after ours."""
    raised = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    for signum in _signals(*_NAMES, *schedulers.ANNOUNCED):
        if getattr(signal.getsignal(signum), "__code__", None) in raised:
            return signal.Signals(signum)
    return None


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "its message cannot be shown"
