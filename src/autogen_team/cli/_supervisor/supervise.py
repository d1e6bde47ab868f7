"""The supervising process: starts the job as its child, passes on what it prints and what it is sent, waits for it.

It loads neither mlflow nor pydantic as long as the child closes its run itself.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from autogen_team.cli import _look
from autogen_team.cli._supervisor import aftermath, forwarding, relay
from autogen_team.cli._supervisor.forwarding import Forwarding
from autogen_team.cli._supervisor.relay import Relay
from autogen_team.cli._supervisor.transcript import Transcript
from autogen_team.cli._supervisor.wire import OpenRun, Order, SupervisorEnd

if TYPE_CHECKING:
    from autogen_team.cli._supervisor.terminal import Terminal

_CHILD = """\
import sys
sys.path[:] = {path!r}
from autogen_team.cli._supervisor.inside import main
main()
"""
_FORWARDED = ("SIGINT", *forwarding.NAMES)
_SLOW_READER = 1.0
"""Seconds that the end of a run waits for whoever reads our output, so that the run has it too."""


def supervise(order: Order) -> NoReturn:
    """Have the order done by a child, and exit as that did: with its status, or 128 and the signal that ended it."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        # Some launchers ignore it, and every process inherits that. The kernel then keeps no exit status for us.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = _Child(order)
    status = child.wait()
    if not child.wire.is_closed:
        death = aftermath.Death(
            status, child.wire.run, child.ended_at, child.pid, order, child.lacked_memory, child.left
        )
        aftermath.settle(death)
    if child.was_interrupted and status in (128 + signal.SIGINT, -signal.SIGINT):
        # As the key would have without us: a script of a shell that runs us ends too, and what reads our output.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.killpg(os.getpgrp(), signal.SIGINT)
    raise SystemExit(status if status >= 0 else 128 - status)


class _Child:
    """The job's process, with all that connects us to it."""

    def __init__(self, order: Order) -> None:
        self._is_command = order.is_command
        self._transcript = Transcript() if order.is_kept else None
        self._terminal: Terminal | None = None
        self._kills = aftermath.kills_for_memory()
        self.ended_at = 0.0
        """Seconds since 1970."""
        self.left: aftermath.Left = []
        """The journals that it has not closed."""
        for number in (0, 1, 2):  # closed ones would be given to our own sockets
            if not _is_open(number):
                os.open(os.devnull, os.O_RDWR)
        ours, theirs = socket.socketpair()
        self.wire = SupervisorEnd(ours)
        forward = Forwarding(self._send)
        self._forwarded = forwarding.install(forward, _FORWARDED)
        with theirs:
            self._process, sources = self._start(order, theirs.fileno())
        self.pid = self._process.pid
        forward.to(self._process)
        if self._terminal is None or not self._terminal.is_fed:  # else its key does it
            signal.signal(signal.SIGTSTP, self._stop)
        self.wire.send(order)
        with _without_signals():  # they wake only the main thread, which waits for the child
            self._relays = [self._relay(*source) for source in sources]
            self._listener = self.wire.listen(on_run=self._run_opened, on_flush=self._flush)

    def _start(self, order: Order, wire: int) -> tuple[subprocess.Popen[bytes], list[tuple[str, int, int]]]:
        """Start the child; return it with what it writes to: a name, the descriptor to read from, and ours for it."""
        code = _CHILD.format(path=[entry or str(Path.cwd()) for entry in sys.path])
        command = [sys.executable, "-c", code, str(wire), *order.command]
        streams: dict[str, int] = {}
        sources: list[tuple[str, int, int]] = []
        terminals = [number for number in (1, 2) if order.is_kept and _is_terminal(number)]
        if terminals:
            from autogen_team.cli._supervisor.terminal import Terminal

            self._terminal = Terminal(terminals[0])
            sources.append(("terminal", self._terminal.main, terminals[0]))
            if self._terminal.is_fed:
                streams["stdin"] = self._terminal.child
        for number, name in ((1, "stdout"), (2, "stderr")) if order.is_kept else ():
            if number in terminals and self._terminal is not None:
                streams[name] = self._terminal.child
            else:
                source, streams[name] = os.pipe()
                sources.append((name, source, number))
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter
                command,
                stdin=streams.get("stdin"),
                stdout=streams.get("stdout"),
                stderr=streams.get("stderr"),
                pass_fds=[wire],
                # a supervisor inside of the job has a run of its own
                env={name: value for name, value in os.environ.items() if not name.startswith("AUTOGEN_TEAM_RUN_")},
                start_new_session=True,  # a key pressed in a terminal shall reach it once, through us
                preexec_fn=self._terminal.become_controlling if self._terminal else None,  # noqa: PLW1509 - no threads yet
            )
        finally:
            for descriptor in set(streams.values()):
                os.close(descriptor)
        return process, sources

    def _relay(self, name: str, source: int, target: int) -> Relay:
        assert self._transcript is not None
        transcript = self._transcript
        return Relay(name, source, target, lambda data: transcript.add(name, data))

    def wait(self) -> int:
        """Return how the child has ended, its status or less than 0 for a signal, once all it has said is heard."""
        with self._terminal.feed(self.pid) if self._terminal else nullcontext():
            status = self._process.wait()
            self.ended_at = time.time()
            for number in [*self._forwarded, signal.SIGTSTP]:  # from now on they are for us
                signal.signal(number, signal.SIG_DFL)
            with suppress(OSError):
                self.wire.socket.shutdown(socket.SHUT_RD)  # a process that it has forked may hold the other end
            self._listener.join()
            if self.wire.run is not None and not self.wire.is_closed:
                # Before the output, which is passed on as slowly as its reader likes: the watchdog waits for nobody.
                with suppress(Exception):  # met again, and told, when the run is closed
                    self.left = aftermath.take_over(self.wire.run, self.pid)
            for one in self._relays:
                one.finish()
        for fault in [one.fault for one in self._relays if one.fault]:
            _look.say("warning", f"output of the job is lost: {fault}", "yellow")
        if self._transcript is not None:
            self._transcript.close()
        return status

    @property
    def was_interrupted(self) -> bool:
        """Whether the key that interrupts was pressed in the child's terminal."""
        return self._terminal is not None and self._terminal.was_interrupted

    @property
    def lacked_memory(self) -> bool:
        """Whether the kernel has killed somebody for lack of memory meanwhile."""
        return aftermath.kills_for_memory() > self._kills

    def _send(self, process: subprocess.Popen[bytes], number: int) -> None:
        if number == signal.SIGINT and self._is_command:
            os.killpg(process.pid, number)  # as a terminal would send it
        else:
            process.send_signal(number)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Stop the child, which is in another session, and ourselves; go on together."""
        with forwarding.stopped([self.pid]):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            signal.signal(number, self._stop)

    def _run_opened(self, run: OpenRun) -> None:
        if self._transcript is None:
            return
        if run.keeps_log:
            self._transcript.belongs_to(run.run_id, Path(run.state), masked=run.masks)
        else:
            self._transcript.discard()

    def _flush(self) -> None:
        relay.wait_for(self._relays, _SLOW_READER)
        if self._transcript is not None:
            self._transcript.flush()


@contextmanager
def _without_signals() -> Iterator[None]:
    """Let threads that are started inside the block leave signals to others."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in _FORWARDED])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
