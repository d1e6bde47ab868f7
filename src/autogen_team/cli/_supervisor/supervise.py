"""The supervising process: start the job as its child, pass on its output and our signals, and wait for it.

It imports neither mlflow nor pydantic if the child closes its run itself.
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
from typing import TYPE_CHECKING, Any, NoReturn

from autogen_team._snapshot import process
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
"""Seconds that the end of a run waits for the reader of our output, so that the transcript is complete."""


def supervise(order: Order) -> NoReturn:
    """Execute the order in a child, and exit as it did: with its status, or 128 plus the signal that ended it."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        # Some launchers ignore SIGCHLD, and their children inherit that. The kernel then keeps no exit status for us.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = _Child(order)
    status = child.wait()
    if not child.wire.is_closed:
        death = aftermath.Death(
            status, child.wire.run, child.ended_at, child.pid, order, child.lacked_memory, child.left
        )
        aftermath.settle(death)
    if child.was_interrupted and status in (128 + signal.SIGINT, -signal.SIGINT):
        # As the key would do without us: a shell script that runs us ends too, and so does the reader of our output.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.killpg(os.getpgrp(), signal.SIGINT)
    raise SystemExit(status if status >= 0 else 128 - status)


class _Child:
    """The process of the job, with everything that connects us to it."""

    def __init__(self, order: Order) -> None:
        self._is_command = order.is_command
        self._transcript = Transcript() if order.is_kept else None
        self._terminal: Terminal | None = None
        self._kills = aftermath.kills_for_memory()
        self.ended_at = 0.0
        """Seconds since 1970."""
        self.left: aftermath.Left = []
        """The journals that the child has not closed."""
        for number in (0, 1, 2):  # our own sockets would get the numbers of closed descriptors
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
        if self._terminal is None or not self._terminal.is_fed:  # else the terminal handles its key
            signal.signal(signal.SIGTSTP, self._stop)
        self.wire.send(order)
        with _without_signals():  # signals must wake the main thread, which waits for the child
            self._relays = [self._relay(*source) for source in sources]
            self._listener = self.wire.listen(
                on_run=self._run_opened, on_flush=self._flush, make_snapshot=_make_snapshot
            )

    def _start(self, order: Order, wire: int) -> tuple[subprocess.Popen[bytes], list[tuple[str, int, int]]]:
        """Start the child; return it with its outputs: a name, the descriptor to read from and our own to write to."""
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
                # a supervisor inside the job opens a run of its own
                env={name: value for name, value in os.environ.items() if not name.startswith("AUTOGEN_TEAM_RUN_")},
                start_new_session=True,  # a key pressed in a terminal must reach it only once, through us
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
        """Wait for the child and all its output; return its status, or the negative number of a signal."""
        with self._terminal.feed(self.pid) if self._terminal else nullcontext():
            status = self._process.wait()
            self.ended_at = time.time()
            for number in [*self._forwarded, signal.SIGTSTP]:  # from now on, signals are meant for us
                signal.signal(number, signal.SIG_DFL)
            with suppress(OSError):
                self.wire.socket.shutdown(socket.SHUT_RD)  # a process that the child has forked may hold the other end
            self._listener.join()
            if self.wire.run is not None and not self.wire.is_closed:
                # Before the rest of the output, which a slow reader may delay: the agent does not wait for that.
                with suppress(Exception):  # the error recurs, and is reported, when the run is closed
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
        """Whether the interrupt key was pressed in the child's terminal."""
        return self._terminal is not None and self._terminal.was_interrupted

    @property
    def lacked_memory(self) -> bool:
        """Whether the kernel has killed any process for lack of memory since the child was started."""
        return aftermath.kills_for_memory() > self._kills

    def _send(self, process: subprocess.Popen[bytes], number: int) -> None:
        if number == signal.SIGINT and self._is_command:
            os.killpg(process.pid, number)  # as a terminal would send it
        else:
            process.send_signal(number)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Stop the child, which is in another session, and ourselves; both continue together."""
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


def _make_snapshot(order: dict[str, Any]) -> bool:
    return process.make(process.Order(**order))


@contextmanager
def _without_signals() -> Iterator[None]:
    """Block the forwarded signals in threads that are started inside the block."""
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
