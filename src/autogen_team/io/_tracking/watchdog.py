"""A tiny process that outlives the job: it sees the job die, and has its runs closed and its journal delivered.

It holds the reading end of a pipe. When the job ends in good order it is told so and goes; when the pipe just ends, or
the parent is another, the job has been killed, and the process becomes the one that recovers the journal. It loads no
more of Python than it needs: 10 MB, and half a millisecond of the job's time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_WATCH = """
import json, os, select, sys
heard = b""
while b"\\n" not in heard:
    more = os.read(0, 65536)
    if not more:
        sys.exit()
    heard += more
order, _, heard = heard.partition(b"\\n")
order = json.loads(order)
while b"bye" not in heard:
    if select.select([0], [], [], 1.0)[0]:
        more = os.read(0, 64)
        if not more:
            break
        heard += more
    elif os.getppid() != order["parent"]:
        break
else:
    sys.exit()
os.execv(order["command"][0], order["command"])
"""
_RECOVER = """
import sys
sys.path[:] = {path!r}
from autogen_team.io._tracking import recovery
recovery.after_death({folder!r})
"""
_PATIENCE = 1.0
"""Seconds that the watchdog may take to go when it is told to."""


class Watchdog:
    """Watches over this process while it has a journal."""

    def __init__(self, uri: str, registry_uri: str) -> None:
        self._uris = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": registry_uri}
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self, folder: Path) -> None:
        """Begin to watch; where that cannot be done, `autogen-team recover` has to do without."""
        if os.name != "posix" or self._process is not None:
            return
        recover = _RECOVER.format(path=[entry or str(Path.cwd()) for entry in sys.path], folder=str(folder))
        order = {"parent": os.getpid(), "command": [sys.executable, "-c", recover]}
        with suppress(OSError):
            self._process = subprocess.Popen(  # noqa: S603 - our own text, in our own interpreter
                [sys.executable, "-I", "-S", "-c", _WATCH],
                stdin=subprocess.PIPE,
                # Whoever reads the job's output until its end must not wait for the watchdog's.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **self._uris},
                start_new_session=True,
            )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """Send it away: the job has ended in good order."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        with suppress(OSError):
            process.stdin.write(b"bye")
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)

    def after_fork(self) -> None:
        """Let go of the parent's pipe, which would not end with the parent otherwise."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
            process.returncode = 0  # it is the parent's child, not ours to wait for
