"""The supervisor's side of the keeper, which starts before the command line is parsed, because both take time."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autogen_team.cli import _look
from autogen_team.cli._supervisor import wire
from autogen_team.cli._supervisor.wire import End, OpenRun, Order, Ready

_KEEPER = """\
import sys
sys.path[:] = {path!r}
from autogen_team._process import exits
done = exits.skip_teardown()
from autogen_team.cli._supervisor.keeper import main
main()
done()
"""
_started: Keeper | None = None


def start() -> None:
    """Start a keeper for the command line that will be parsed next."""
    global _started
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        # Some launchers ignore SIGCHLD, and their children inherit this. The kernel then keeps no exit status for us.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (0, 1, 2):  # otherwise our own descriptors would get the numbers of closed ones
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)
    _started = Keeper()


def started() -> Keeper:
    """Return the keeper; start it if it is not running."""
    if _started is None:
        start()
    assert _started is not None
    return _started


class Keeper:
    """The process that opens and closes the run, as the supervisor sees it; see `keeper`."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        code = _KEEPER.format(path=_path())
        command = [sys.executable, "-c", code, str(theirs.fileno()), f"autogen-team-keeper-{os.getpid()}"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output belongs to the job
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # the keeper survives a signal to our process group
            )
        self._socket = ours
        self._heard = wire.lines(ours)
        self._has_begun = False
        self._run: OpenRun | None = None
        self._is_known = threading.Event()
        """Set once the run is open, or cannot be opened."""
        self.on_run: Callable[[OpenRun], None] = lambda _: None
        self.on_failure: Callable[[], None] = lambda: None
        atexit.register(self._abandon)

    def say(self, **what: Any) -> None:
        """Send the keeper a message."""
        with suppress(OSError):  # the keeper has ended, as its exit status will show
            self._socket.sendall(wire.line(what))

    def begin(self, order: Order, *, needs_run: bool) -> Ready:
        """Ask for the run, and return once the settings are valid; exit with the keeper's status if they are not.

        With `needs_run` the job starts only once its run is open.
        """
        self._has_begun = True
        self.say(order=asdict(order), needs_run=needs_run)
        for said in self._heard:
            return Ready(**said["ready"])
        raise SystemExit(self._refusal())

    def run(self) -> OpenRun:
        """Wait until the run is open; exit with the status of the keeper if it cannot be opened."""
        self._listen()
        if self._run is None:
            raise SystemExit(self._refusal())
        return self._run

    def listen(self) -> None:
        """Wait for the run on a separate thread."""
        threading.Thread(target=self._listen, name="autogen_team-keeper", daemon=True).start()

    def wait_for_run(self) -> OpenRun | None:
        """Wait until the run is open; return None if it cannot be opened."""
        self._is_known.wait()
        return self._run

    def close(self, end: End) -> int:
        """Report how the job ended, and wait until the run is closed; return a status if the run was never open."""
        self.say(end=asdict(end))
        self._is_known.wait()
        status = self._process.wait()
        self._leave()
        if self._run is None:
            return self._status(status)
        if status:
            hint = "the agent closes the run; if it does not, run autogen-team recover"
            _look.say("error", f"the keeper of the run was killed ({status}): {hint}", "bold red")
        return 0

    def _listen(self) -> None:
        for said in self._heard:
            self._run = OpenRun(**said["run"])
            self.on_run(self._run)
            break
        self._is_known.set()
        if self._run is None:
            self.on_failure()

    def _refusal(self) -> int:
        self._leave()
        return self._status(self._process.wait())

    def _abandon(self) -> None:
        """End the keeper if it was never used because the command line is invalid."""
        self._leave()
        if not self._has_begun:
            self._process.kill()
            self._process.wait()

    def _leave(self) -> None:
        self._heard.close()
        self._socket.close()

    @staticmethod
    def _status(status: int) -> int:
        return status if status > 0 else _look.NOT_STARTED


def _path() -> list[str]:
    """Return our `sys.path` without the script's folder or the working folder, which contain modules of the job."""
    own = [] if sys.flags.safe_path else sys.path[:1]
    root = str(Path(__file__).parents[3])
    return [root, *(entry or str(Path.cwd()) for entry in sys.path[len(own) :] if entry != root)]


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
