"""Signals that the supervisor forwards to the job, and terminal keys that reach the job directly."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

_OWN = {signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
_OF_TERMINAL = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
KEYS = {signal.SIGINT, signal.SIGQUIT}
"""The signals that a terminal sends to its foreground processes for a key."""


def passed_on(*, stops: bool) -> set[int]:
    """Return the signals to wait for and forward: all that can be forwarded, except ignored ones, as under nohup.

    With `stops`, the signal of the key that stops a job is included.
    """
    numbers = set(signal.valid_signals()) - _OWN - _OF_TERMINAL - {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTRAP}
    numbers |= {signal.SIGTSTP} if stops else set()
    return {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}


def wait(numbers: Collection[int]) -> tuple[int, bool]:
    """Wait for one of these blocked signals; return it, and whether the system sent it, for example for a key."""
    if hasattr(signal, "sigwaitinfo"):
        info = signal.sigwaitinfo(numbers)
        return info.si_signo, info.si_code > 0
    number = signal.sigwait(numbers)  # macOS does not say: in the foreground we assume a key
    return number, number in KEYS and is_in_foreground(0)


def is_in_foreground(descriptor: int) -> bool:
    """Return whether this process is in the foreground of its terminal, so that it may read from it."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False


@contextmanager
def stopped(groups: Collection[int]) -> Iterator[None]:
    """Stop process groups, and continue them at the end of the block, inside which this process stops too."""
    _signal_groups(groups, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal_groups(groups, signal.SIGCONT)


def _signal_groups(groups: Collection[int], number: signal.Signals) -> None:
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
