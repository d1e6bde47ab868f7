"""Forward signals to a child process: from the supervisor to the job, and from the job to a command."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

NAMES = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
"""Signals that a person or a scheduler sends to one process; Ctrl-C comes from a terminal, and reaches many."""


class Forwarding:
    """Forwards signals to a process, and keeps those that come before the process is known."""

    def __init__(self, send: Callable[[subprocess.Popen[bytes], int], None] = subprocess.Popen.send_signal) -> None:
        """Forward signals by calling `send` with the process and the number of the signal."""
        self._send = send
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def to(self, process: subprocess.Popen[bytes]) -> None:
        """Forward signals to this process from now on, first those that were kept."""
        self._process = process
        for number in self._early:
            self(number)

    def __call__(self, number: int, _frame: FrameType | None = None) -> None:
        """Forward a signal, or keep it; callable as a signal handler."""
        if self._process is None:
            self._early.append(number)
            return
        with suppress(ProcessLookupError):
            self._send(self._process, number)


def install(handler: Callable[[int, FrameType | None], None], names: Iterable[str] = NAMES) -> list[int]:
    """Handle the signals of these names and return their numbers; a signal that is ignored, as by nohup, stays so."""
    found = list(_heeded(names))
    for number in found:
        signal.signal(number, handler)
    return found


@contextmanager
def stopped(groups: Collection[int]) -> Iterator[None]:
    """Stop process groups inside the block, in which this process stops too, and continue them at its end."""
    _signal_groups(groups, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal_groups(groups, signal.SIGCONT)


def _signal_groups(groups: Collection[int], number: signal.Signals) -> None:
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, number)


def _heeded(names: Iterable[str]) -> Iterator[int]:
    for name in names:
        number = getattr(signal, name, None)  # not every system has all of them
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            yield number
