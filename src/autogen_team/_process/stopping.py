"""Requests from outside to end the job, such as a tag on the page of its run.

The job receives SIGTERM, so its `finally` blocks and its own handlers run. Its run gets the request as the reason,
instead of the signal.
"""

from __future__ import annotations

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

_report = logging.getLogger("autogen_team")
_reason: str | None = None
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
    if kills:
        spawn(_kill, name="autogen_team-stop")
    elif is_first:
        spawn(partial(_warn_that_job_runs, why), name="autogen_team-stop")


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


def _warn_that_job_runs(why: str) -> None:
    time.sleep(_PATIENCE)
    text = "the job still runs, %g s after SIGTERM (%s); its own signal handler may have decided to continue"
    _report.warning(text, _PATIENCE, why)


def _forget() -> None:
    global _reason
    _reason = None


call_in_child(_forget)  # the request was for the parent
