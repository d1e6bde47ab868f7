"""Signals of ours that are meant for a process of ours: the supervisor's for its child, that one's for a command."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

NAMES = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
"""What a person or a scheduler sends to one process; Ctrl-C is a terminal's, and sent to many."""


class Forwarding:
    """Hands signals on, those that come before the process is there once it is."""

    def __init__(self, send: Callable[[subprocess.Popen[bytes], int], None] = subprocess.Popen.send_signal) -> None:
        """`send` is how."""
        self._send = send
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def to(self, process: subprocess.Popen[bytes]) -> None:
        """Hand them to this process from now on."""
        self._process = process
        for number in self._early:
            self(number)

    def __call__(self, number: int, _frame: FrameType | None = None) -> None:
        """Hand on a signal; a handler."""
        if self._process is None:
            self._early.append(number)
            return
        with suppress(ProcessLookupError):
            self._send(self._process, number)


def install(handler: Callable[[int, FrameType | None], None], names: Iterable[str] = NAMES) -> list[int]:
    """Handle the signals of these names, and return which; one that is ignored is so by somebody's decision (nohup)."""
    found = list(_heeded(names))
    for number in found:
        signal.signal(number, handler)
    return found


@contextmanager
def stopped(groups: Collection[int]) -> Iterator[None]:
    """Have groups of processes stopped inside of the block, in which we stop as well; they go on with us."""
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
        number = getattr(signal, name, None)  # other systems know fewer
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            yield number
