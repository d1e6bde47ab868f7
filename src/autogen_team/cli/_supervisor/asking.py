"""The job's requests to its supervisor: one line of JSON each way, each over a new connection.

So the job keeps no descriptor open, and its child processes do not inherit any.
"""

from __future__ import annotations

import json
import socket
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

STOP = "stop"
"""The file beside the supervisor's socket, with the reason of a stop from outside; signal handlers can read it."""


def ask(address: str, **what: Any) -> dict[str, Any]:
    """Send a request and return the answer; an empty one if the supervisor is gone."""
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(json.dumps(what).encode() + b"\n")
        with connection.makefile("rb") as stream:
            answer: dict[str, Any] = json.loads(stream.readline())
            return answer
    return {}


def ask_for_run(address: str) -> dict[str, Any]:
    """Return the fields of a `wire.Joining`; wait until the run is open."""
    return ask(address, ask="run")


def hide(address: str, secrets: Iterable[str]) -> None:
    """Ask the supervisor to mask these values in the kept output; return once they are masked."""
    ask(address, hide=sorted(secrets))


def reason_of_stop(address: str) -> str | None:
    """Return why the keeper has asked the job to end; None if it has not. Safe to call from a signal handler."""
    with suppress(OSError, ValueError):
        return Path(address).with_name(STOP).read_text("utf-8")
    return None


def tell_end(address: str, error: BaseException | None, **more: Any) -> None:
    """Report what the exit status does not say: the job's exception, and the status that the job gave its runs."""
    ask(address, end={"failure": None if error is None else _failure(error), **more})


def _failure(error: BaseException) -> dict[str, str]:
    try:
        text = str(error)
    except Exception:
        text = "its message cannot be shown"
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception as fault:  # a failing __str__ or an unreadable source file
        trace = f"{type(error).__name__} (its traceback could not be made: {type(fault).__name__})\n"
    return {"kind": type(error).__name__, "text": text, "trace": trace}
