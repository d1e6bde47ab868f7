"""Start the process that takes a snapshot, and wait for it.

The process is not a child of the job, because a job may wait for all its children. It has a low priority. It gets its
order through a pipe, because other users can read a command line.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

PART = ".part"
"""Suffix of the folder of an incomplete snapshot."""
PATIENCE = 60.0
"""Maximum seconds to wait for a snapshot."""
_MAKE = """
import os, sys
order = sys.stdin.read()
if os.fork():
    os._exit(0)
sys.path.append({place!r})
from autogen_team._snapshot.make import main
main(order)
os.write(1, b"made")
"""


@dataclass(frozen=True, slots=True)
class Order:
    """The content of a snapshot, and where to write it."""

    folder: str
    """The folder to write, which does not exist yet."""
    command: list[str]
    """The command of the job."""
    cwd: str
    script: str | None
    """The script or module that the job runs; None for any other command."""
    executable: str
    """The interpreter of the job."""
    python: str
    """The version of that interpreter."""
    path: list[str]
    """The `sys.path` of the job."""
    excluded: list[str] = field(default_factory=list)
    """Files and folders that are not code, such as the store of the runs."""
    cells: list[tuple[int, str]] = field(default_factory=list)
    """The cells of a notebook that were executed, with their numbers."""
    notebook: str | None = None
    secrets: list[str] = field(default_factory=list)
    """Values to mask that are not in the environment."""
    patterns: list[str] = field(default_factory=list)
    allow: list[str] = field(default_factory=list)


def make(order: Order) -> bool:
    """Take a snapshot in a separate process; return whether it is complete. Blocks for up to `PATIENCE` seconds."""
    # The folder of this package comes last: a module beside it may have the name of a standard one.
    code = _MAKE.format(place=str(Path(__file__).parents[2]))
    try:
        process = subprocess.Popen(  # noqa: S603 - our own text, in our own interpreter
            [sys.executable, "-I", "-S", "-c", code, "autogen-team-snapshot"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return False
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        with suppress(OSError), process.stdin as pipe:
            pipe.write(json.dumps(asdict(order)).encode())
        process.wait()  # exits as soon as it has forked
        return _is_answered(process.stdout.fileno()) and Path(order.folder).is_dir()


def _is_answered(pipe: int) -> bool:
    """Return whether the other end of the pipe sends anything in time.

    Does not wait for the end of the pipe, which a process that the job has forked meanwhile may hold open.
    """
    deadline = time.monotonic() + PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0]:
            return bool(os.read(pipe, 16))
    return False
