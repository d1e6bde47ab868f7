"""Requests from outside to end the job, such as a tag on the page of its run.

The job receives SIGTERM, so its `finally` blocks and its own handlers run. Its run gets the request as the reason,
instead of the signal.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from contextlib import suppress
from functools import partial

from autogen_team._process import grace, identity
from autogen_team._process.forking import call_in_child
from autogen_team._process.threads import spawn

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL for a job that sets no `grace`."""
_PATIENCE = 60.0
"""Seconds after SIGTERM before a warning that the job still runs."""

_GLANCE = 0.5
"""Polling interval in seconds."""
_TIME_FOR_CHILDREN = 5.0
"""Seconds between the SIGTERM of the job and that of its children without the context; less with a short `grace`."""

_report = logging.getLogger("autogen_team")
_reason: str | None = None
_is_ending = False
_receiver: int | None = None


def pass_to(pid: int) -> None:
    """Send the signal to this process, the supervisor, which forwards it to the job."""
    global _receiver
    _receiver = pid


def reason() -> str | None:
    """Return why the job was asked to end; None without a request."""
    return _reason


def end_job(why: str, *, kills: bool) -> None:
    """Send SIGTERM to the job of this process; with `kills`, also SIGKILL if it still runs after its grace."""
    global _reason
    is_first = _reason is None
    _reason = why
    _report.warning("sending SIGTERM to the job: %s", why)
    _terminate()
    if is_first and _receiver is None:
        _follow_children()
    if kills:
        spawn(_kill, name="autogen_team-stop")
    elif is_first:
        spawn(partial(_warn_that_job_runs, why), name="autogen_team-stop")


def expect(why: str) -> None:
    """Note why the SIGTERM comes that a supervisor passes on to this process."""
    global _reason
    is_first = _reason is None
    _reason = why
    if is_first:
        _follow_children()


def begin() -> None:
    """Note that a signal is about to end this process, and that no handler of the job has decided otherwise.

    A signal handler may call it.
    """
    global _is_ending
    _is_ending = True


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


def _follow_children() -> None:
    atexit.register(_signal_children, os.getpid())
    spawn(_end_children, name="autogen_team-stop-children")


def _end_children() -> None:
    """Send SIGTERM to the children that run this program and would hold up its end, or outlive it.

    The workers of a process pool without the context get no signal otherwise, and the end of the pool waits for them.
    At first the `finally` blocks of the job have time to end them, at most until the job exits. Daemonic processes end
    with the job anyway, and other programs are the job's to end.
    """
    while not _is_ending:
        time.sleep(_GLANCE)
    time.sleep(min(_TIME_FOR_CHILDREN, seconds_to_kill() / 2))
    _signal_children(os.getpid())


def _signal_children(owner: int) -> None:
    if _is_ending and os.getpid() == owner:  # a forked child has the exit function of its parent
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


def _forget() -> None:
    global _reason, _is_ending
    _reason, _is_ending = None, False


call_in_child(_forget)  # the request was for the parent
