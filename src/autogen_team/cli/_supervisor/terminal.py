"""A pseudo-terminal for the job, because a job whose output is kept cannot write to our terminal.

While we are in the foreground, our terminal passes on each key unchanged, even Ctrl-C. So the job's terminal decides
what a key means. It has the size of our terminal. In the background no key is read, and a job that reads has to wait.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from autogen_team.cli._supervisor.forwarding import is_in_foreground

_STDIN = 0
_POLL = 0.2
"""Seconds between two checks whether we are in the foreground again."""
_WAITING = 2**16
"""Number of bytes of keys that may wait for a job that does not read; further keys are dropped, as by a terminal."""


class Terminal:
    """A pseudo-terminal with the attributes and size of the terminal at our descriptor `model`."""

    def __init__(self, model: int) -> None:
        self._model = model
        self.main, self.child = os.openpty()
        self._name = os.ttyname(self.child)
        self.is_fed = os.isatty(_STDIN)
        """Whether keys go to the job."""
        self._attributes = termios.tcgetattr(_STDIN) if self.is_fed else None
        self.was_interrupted = False
        """Whether the interrupt key was pressed."""
        termios.tcsetattr(self.child, termios.TCSANOW, termios.tcgetattr(model))
        self._translates(self.is_fed and is_in_foreground(_STDIN))
        self._resize()

    def become_controlling(self) -> None:
        """Make this the controlling terminal of the calling process's session; called in the child."""
        fcntl.ioctl(self.child, termios.TIOCSCTTY, 0)

    def groups(self) -> set[int]:
        """Return the process group in the foreground of this terminal, or an empty set."""
        with suppress(OSError):
            return {os.tcgetpgrp(self.main)}
        return set()

    @contextmanager
    def feed(self) -> Iterator[None]:
        """Pass on keys to the job inside the block."""
        try:
            self.take()
            if self.is_fed:
                threading.Thread(target=self._feed, name="autogen_team-keys", daemon=True).start()
            yield
        finally:
            self.give_back()

    def take(self) -> None:
        """Adapt to a change of our terminal's size, or of whether we are in its foreground.

        In the foreground, our terminal is put into raw mode, so that keys arrive unchanged.
        """
        self._resize()
        if self._attributes is not None and is_in_foreground(_STDIN):
            with suppress(termios.error):
                tty.setraw(_STDIN, termios.TCSADRAIN)
                self._translates(True)

    def give_back(self) -> None:
        """Restore the attributes of our terminal, if we are in the foreground."""
        if self._attributes is not None and is_in_foreground(_STDIN):
            with suppress(termios.error):
                termios.tcsetattr(_STDIN, termios.TCSADRAIN, self._attributes)
                self._translates(False)

    def _resize(self) -> None:
        with suppress(OSError):
            fcntl.ioctl(self.main, termios.TIOCSWINSZ, fcntl.ioctl(self._model, termios.TIOCGWINSZ, b"\0" * 8))

    def _translates(self, wanted: bool) -> None:
        """Set whether the job's terminal converts LF to CR LF; our terminal does so while it is not raw."""
        attributes = termios.tcgetattr(self.main)
        attributes[1] = attributes[1] | termios.OPOST if wanted else attributes[1] & ~termios.OPOST
        termios.tcsetattr(self.main, termios.TCSANOW, attributes)

    def _feed(self) -> None:
        os.set_blocking(self.main, False)
        waiting = b""
        with suppress(OSError, termios.error):
            while True:
                ready, free, _ = select.select([_STDIN], [self.main] if waiting else [], [])
                if free:
                    waiting = waiting[os.write(self.main, waiting) :]
                if not ready:
                    continue
                if not is_in_foreground(_STDIN):  # reading would stop us
                    time.sleep(_POLL)
                    continue
                keys = os.read(_STDIN, 1024)
                if not keys:
                    return
                waiting = self._heeded(waiting, keys)[:_WAITING]

    def _heeded(self, waiting: bytes, keys: bytes) -> bytes:
        """Act on the keys that must not wait behind others, and return the keys that still wait."""
        if self._key(termios.VINTR) in keys:
            self.was_interrupted = True
        for name, number in ((termios.VINTR, signal.SIGINT), (termios.VQUIT, signal.SIGQUIT)):
            _, key, after = keys.rpartition(self._key(name))
            if key and (waiting or self._drops_unread()):
                # The job does not read, so the key would wait behind earlier keys, which a terminal drops.
                waiting, keys = b"", after
                for group in self.groups():
                    os.killpg(group, number)
        key = self._key(termios.VSUSP)
        if key in keys:
            # Stops the other processes of our pipeline too, as the key does; the supervisor stops the job.
            os.killpg(os.getpgrp(), signal.SIGTSTP)
            keys = keys.replace(key, b"")
        return waiting + keys

    def _drops_unread(self) -> bool:
        """Drop the lines that the job has not read, and return whether there were any."""
        child = os.open(self._name, os.O_RDWR | os.O_NOCTTY)
        try:
            unread = int.from_bytes(fcntl.ioctl(child, termios.FIONREAD, b"\0" * 4), sys.byteorder)
            if unread:
                termios.tcflush(child, termios.TCIFLUSH)
        finally:
            os.close(child)
        return unread > 0

    def _key(self, name: int) -> bytes:
        """Return the key for `name`, or bytes that no key sends if the job has disabled it."""
        attributes = termios.tcgetattr(self.main)
        key: bytes = attributes[6][name]
        return key if attributes[3] & termios.ISIG and key != b"\0" else b"\xff\xff"
