"""Start the process that makes a snapshot, and wait for it.

It is not a child of the job, which may wait for all its children, and it has a low priority. It gets its order by a
pipe, because a command line can be read by other users.
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
"""What the folder of a snapshot has behind its name until it is complete."""
PATIENCE = 60.0
"""Seconds after which a snapshot is not waited for any more."""
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
    """What a snapshot is of, and where it goes."""

    folder: str
    """The folder to write, which is not there yet."""
    command: list[str]
    """The command of the job."""
    cwd: str
    script: str | None
    """The script or module that the job runs; None for any other command."""
    executable: str
    """The interpreter of the job."""
    python: str
    """Its version."""
    path: list[str]
    """Its `sys.path`."""
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
    """Make a snapshot in a process of its own; return whether it is there. Blocks for up to `PATIENCE` seconds."""
    # Only that is added, at the end: a module of the job's may have the name of one of Python's.
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
        process.wait()  # it has forked by now
        return _hears(process.stdout.fileno()) and Path(order.folder).is_dir()


def _hears(pipe: int) -> bool:
    """Tell whether the other end of the pipe says anything in time.

    Its end is not waited for: a process that the job has forked meanwhile may hold it.
    """
    deadline = time.monotonic() + PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0]:
            return bool(os.read(pipe, 16))
    return False
