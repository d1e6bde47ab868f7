"""Requests from outside to end the job, such as a tag on the page of its run.

The job receives SIGTERM, so its `finally` blocks and its own handlers run. Its run gets the request as the reason,
instead of the signal. In a supervised job, the keeper of the run gets the request. It announces the reason, and its
SIGTERM goes through the supervisor to the job, which reads the reason then.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from autogen_team._process import Undo, grace, identity
from autogen_team._process.forking import call_in_child
from autogen_team._process.threads import spawn

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL for a job that sets no `grace`."""
_PATIENCE = 60.0
"""Seconds after SIGTERM before a warning that the job still runs."""

_TIME_FOR_CHILDREN = 5.0
"""Seconds between the SIGTERM of the job and that of its children without the context; less with a short `grace`."""

_report = logging.getLogger("autogen_team")
_reason: str | None = None
_follows_children = False
_receiver: int | None = None
_announce: Callable[[str], None] | None = None
_announced: Callable[[], str | None] | None = None


def pass_to(pid: int, announce: Callable[[str], None]) -> None:
    """Call `announce` with the reason, then send the signal to this process, the supervisor, which forwards it."""
    global _receiver, _announce
    _receiver, _announce = pid, announce


def learn_from(announced: Callable[[], str | None]) -> Undo:
    """Ask this function for the reason that the keeper has announced, until the returned function is called.

    It returns None without a request, and signal handlers call it.
    """
    global _announced
    _announced = announced
    return _learn_nothing


def reason() -> str | None:
    """Return why the job was asked to end; None without a request."""
    return _announced() if _reason is None and _announced is not None else _reason


def end_job(why: str, *, kills: bool) -> None:
    """Send SIGTERM to the job of this process; with `kills`, also SIGKILL if it still runs after its grace."""
    global _reason
    is_first = _reason is None
    _reason = why
    _report.warning("sending SIGTERM to the job: %s", why)
    if _announce is not None:
        _announce(why)
    _terminate()
    if kills:
        spawn(_kill, name="autogen_team-stop")
    elif is_first:
        spawn(partial(_warn_that_job_runs, why), name="autogen_team-stop")


def begin() -> None:
    """Note that a signal ends this process, and end its children too if the signal was requested from outside.

    Call it in a signal handler once no handler of the job has decided otherwise; later calls do no harm.
    """
    global _follows_children
    if not _follows_children and _receiver is None and reason() is not None:
        _follows_children = True
        atexit.register(_signal_children, os.getpid())
        with suppress(RuntimeError):  # the interpreter is shutting down
            # Not `threading`, whose `start` waits for a lock that the interrupted code may hold.
            _thread.start_new_thread(_end_children, ())


def _terminate() -> None:
    with suppress(ProcessLookupError):
        if _receiver is not None:
            os.kill(_receiver, signal.SIGTERM)
        else:  # the kernel may deliver a signal to the thread that sends it, which does not interrupt the main thread
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def seconds_to_kill() -> float:
    """Return the seconds between SIGTERM and SIGKILL."""
    allowed = grace.allowed()
    return GRACE if allowed is None else allowed


def _kill() -> None:
    time.sleep(seconds_to_kill())
    with suppress(ProcessLookupError):
        os.kill(identity.job(), signal.SIGKILL)


def _end_children() -> None:
    """Send SIGTERM to the children that run this program and would hold up its end, or outlive it.

    The workers of a process pool without the context get no signal otherwise, and the end of the pool waits for them.
    At first the `finally` blocks of the job have time to end them, at most until the job exits. Daemonic processes end
    with the job anyway, and other programs are the job's to end.
    """
    time.sleep(min(_TIME_FOR_CHILDREN, seconds_to_kill() / 2))
    _signal_children(os.getpid())


def _signal_children(owner: int) -> None:
    if os.getpid() == owner:  # a forked child has the exit function of its parent
        for pid in _own_children():
            with suppress(OSError):
                os.kill(pid, signal.SIGTERM)


def _own_children() -> set[int]:
    """Return the children of multiprocessing, unless they are daemonic, and those that were forked by `os.fork`."""
    import multiprocessing

    import psutil

    known = multiprocessing.active_children()
    found = {child.pid for child in known if child.pid is not None and not child.daemon}
    with suppress(psutil.Error):
        command = psutil.Process().cmdline()
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child.cmdline() == command:
                    found.add(child.pid)
    return found - {child.pid for child in known if child.daemon}


def _warn_that_job_runs(why: str) -> None:
    time.sleep(_PATIENCE)
    text = "the job still runs, %g s after SIGTERM (%s); its own signal handler may have decided to continue"
    _report.warning(text, _PATIENCE, why)


def _learn_nothing() -> None:
    global _announced
    _announced = None


def _forget() -> None:
    global _reason, _follows_children
    _reason, _follows_children = None, False
    _learn_nothing()


call_in_child(_forget)  # the request was for the parent
