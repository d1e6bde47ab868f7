"""Alerts about the end of a run: when to send one, and its text."""

from __future__ import annotations

import contextlib
import runpy
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from autogen_team import _redact
from autogen_team._process import identity, run_events
from autogen_team._process.durations import duration

_TRACEBACK_LINES: Final = 10
_ENDINGS: Final = {
    "FINISHED": ("finished", "success"),
    "FAILED": ("failed", "error"),
    "KILLED": ("was killed", "warning"),
}


class Reporter(run_events.Listener):
    """Sends one alert when a job's run ends, as a listener of `run_events`; none for a run inside another run.

    A worker alerts only about failures of its own outermost runs, which are nested in those of the job.
    """

    def __init__(self, notify: Callable[..., None], *, always: bool) -> None:
        self._notify = notify
        self._always = always
        self._rank = identity.rank() or 0

    def run_ended(self, run: run_events.Run, end: run_events.End) -> None:
        """Send an alert if needed: each rank about its own failures, only rank 0 about a success.

        This is called after the run is closed, so that the run's page agrees with the alert.
        """
        is_success = end.status == "FINISHED"
        is_ours = run.parent_id is None or (run.is_outermost and identity.worker() is not None)
        if is_ours and (not is_success or (self._always and self._rank == 0 and identity.worker() is None)):
            title, message, level, brief = job_ended(run, end, host=socket.gethostname(), rank=self._rank)
            self._notify(title, message, level=level, brief=brief)


def job_ended(run: run_events.Run, end: run_events.End, *, host: str, rank: int) -> tuple[str, str, str, str]:
    """Return title, message, level and brief form of the alert about the end of a run, secrets masked.

    The brief form is for the console, which has already shown the traceback.
    """
    ending, level = _ENDINGS[end.status]
    if end.is_preempted:
        ending = "was preempted"
    if end.is_overtaken:
        ending, level = "was overtaken", "warning"
    title = f"{run.name} {ending}" + (f" (rank {rank})" if rank else "")
    lines = [f"after {duration(end.duration)} on {host}"]
    if end.reason is not None:
        lines.append(end.reason)
    if end.is_preempted and run.job is not None:
        lines.append(f"it continues when the job {run.job} is started again; this was start {run.attempt}")
    if end.is_overtaken:
        lines.append(f"the job {run.job} goes on there, in the same run; this was start {run.attempt}")
    lines.append(f"experiment {run.experiment}, run {run.run_id}")
    if run.link is not None:
        lines.append(run.link)
    brief = "\n".join(lines)
    if isinstance(end.exception, run_events.JobEnded) and end.exception.trace:
        lines += ["", *_tail(end.exception.trace)]
    elif end.exception is not None and not isinstance(end.exception, SystemExit):  # the reason covers an exit
        lines += ["", *_last_lines(end.exception)]
    return _redact.mask(title), _redact.mask("\n".join(lines)), level, _redact.mask(brief)


def _last_lines(exception: BaseException) -> list[str]:
    frames = exception.__traceback__
    while frames is not None and _is_machinery(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(exception), exception, frames))
    except Exception as error:  # a failing __str__ or an unreadable source file must not prevent the alert
        text = f"{type(exception).__name__} (its traceback could not be made: {type(error).__name__})"
    return _tail(text)


def _tail(text: str) -> list[str]:
    lines = [line for line in text.rstrip().splitlines() if line.strip(" ^~")]
    return ["...", *lines[-_TRACEBACK_LINES:]] if len(lines) > _TRACEBACK_LINES else lines


def _is_machinery(filename: str) -> bool:
    """Return whether a frame belongs to the code that runs the job, not to the job itself."""
    return filename in _RUNNERS or Path(filename).is_relative_to(_PACKAGE)


_RUNNERS: Final = frozenset({contextlib.__file__, runpy.__file__, "<frozen runpy>"})
_PACKAGE: Final = Path(__file__).parents[2]
