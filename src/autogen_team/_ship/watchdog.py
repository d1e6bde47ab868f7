"""A tiny process that outlives the job: when the job dies, it closes the job's runs and delivers the journal.

The watchdog holds the read end of a pipe. A job that ends in good order tells it so, and it exits. If the pipe just
ends, the job has been killed. It has also been killed if it is gone although a child of it still holds the pipe. Then
the watchdog becomes the process that recovers the journal. It is not a child of the job, because the job may wait for
its children. It loads no more of Python than it needs: 10 MB, and some 15 ms of the job's time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from autogen_team._spool.journal import started_at

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
if os.fork():
    os._exit(0)

def is_alive():
    try:
        with open("/proc/%d/stat" % order["pid"]) as file:
            fields = file.read().rpartition(")")[2].split()
        return fields[0] not in "ZX" and float(fields[19]) == order["started"]
    except OSError:
        return not os.path.exists("/proc/self/stat")

while b"bye" not in heard:
    if select.select([0], [], [], 1.0)[0]:
        more = os.read(0, 64)
        if not more:
            break
        heard += more
    elif not is_alive():
        break
else:
    sys.exit()
os.execv(order["command"][0], order["command"])
"""
_RECOVER = """
import sys
sys.path[:] = {path!r}
from autogen_team._ship import recovery
recovery.after_death({folder!r})
"""
_PATIENCE = 5.0
"""Seconds that the watchdog may take to start."""


class Watchdog:
    """Watches over this process while it has a journal."""

    def __init__(self, uri: str, registry_uri: str) -> None:
        self._uris = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": registry_uri}
        self._pipe: IO[bytes] | None = None

    def watch(self, folder: Path) -> None:
        """Start the watchdog; if that fails, the next start here or `autogen-team recover` recovers the journal."""
        self.dismiss()
        if os.name != "posix":
            return
        recover = _RECOVER.format(path=[entry or str(Path.cwd()) for entry in sys.path], folder=str(folder))
        pid = os.getpid()
        name = f"autogen-team-watchdog-{pid}"  # shown in process lists
        order = {"pid": pid, "started": started_at(pid), "command": [sys.executable, "-c", recover, name]}
        with suppress(OSError, subprocess.TimeoutExpired):
            process = subprocess.Popen(  # noqa: S603 - our own text, in our own interpreter
                [sys.executable, "-I", "-S", "-c", _WATCH, name],
                stdin=subprocess.PIPE,
                # A reader of the job's output must not wait for the watchdog's.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **self._uris},
                start_new_session=True,
            )
            self._pipe = process.stdin
            assert self._pipe is not None
            self._pipe.write(json.dumps(order).encode() + b"\n")
            self._pipe.flush()
            process.wait(_PATIENCE)  # it has forked: the process that watches is not our child

    def dismiss(self) -> None:
        """Tell the watchdog to exit: the job has ended in good order."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            with suppress(OSError):
                pipe.write(b"bye")
                pipe.close()

    def after_fork(self) -> None:
        """Close the parent's pipe, which would otherwise stay open after the parent's end."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
