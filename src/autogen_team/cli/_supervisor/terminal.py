"""A terminal of the child's own, because one whose output is kept cannot write to ours.

While we are in the foreground, ours hands each key to it as it is, Ctrl-C too; so the child's terminal decides what
they mean, and its size is that of ours. A child that is stopped by Ctrl-Z stops us with it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from autogen_team.cli._supervisor import forwarding

_STDIN = 0
_STOPPING = 0.1
_GLANCE = 0.2
"""Seconds between two looks at whether we are in the foreground again."""


class Terminal:
    """A terminal like the one of `model`, which is a descriptor of ours."""

    def __init__(self, model: int) -> None:
        self._model = model
        self.main, self.child = os.openpty()
        attributes = termios.tcgetattr(model)
        self.is_fed = os.isatty(_STDIN) and _is_in_foreground(_STDIN)
        """Whether keys go to the child."""
        if not self.is_fed:
            attributes[1] &= ~termios.OPOST  # ours turns the end of a line into its two characters, once
        termios.tcsetattr(self.child, termios.TCSANOW, attributes)
        self.resize()
        self._attributes = termios.tcgetattr(_STDIN) if self.is_fed else None
        self.was_interrupted = False
        """Whether the key that interrupts was pressed."""

    def become_controlling(self) -> None:
        """Make it the terminal of the calling process's session; called in the child."""
        fcntl.ioctl(self.child, termios.TIOCSCTTY, 0)

    def resize(self, *_: object) -> None:
        """Give it the size of ours."""
        with suppress(OSError):
            fcntl.ioctl(self.main, termios.TIOCSWINSZ, fcntl.ioctl(self._model, termios.TIOCGWINSZ, b"\0" * 8))

    @contextmanager
    def feed(self, pid: int) -> Iterator[None]:
        """Hand keys to the child, the process `pid`, inside the block."""
        previous = {number: signal.getsignal(number) for number in (signal.SIGWINCH, signal.SIGCONT)}
        signal.signal(signal.SIGWINCH, self._resized)
        signal.signal(signal.SIGCONT, self._resized)
        try:
            self._take()
            if self.is_fed:
                threading.Thread(target=self._feed, args=(pid,), name="autogen_team-keys", daemon=True).start()
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._give_back()

    def _resized(self, *_: object) -> None:
        self.resize()
        self._take()

    def _take(self) -> None:
        """Have our terminal hand over keys as they are."""
        if self._attributes is not None and _is_in_foreground(_STDIN):
            with suppress(termios.error):
                tty.setraw(_STDIN, termios.TCSADRAIN)

    def _give_back(self) -> None:
        """Make our terminal what it was."""
        if self._attributes is not None and _is_in_foreground(_STDIN):
            with suppress(termios.error):
                termios.tcsetattr(_STDIN, termios.TCSADRAIN, self._attributes)

    def _feed(self, pid: int) -> None:
        with suppress(OSError, termios.error):
            while True:
                select.select([_STDIN], [], [])
                if not _is_in_foreground(_STDIN):  # to read would stop us
                    time.sleep(_GLANCE)
                    continue
                keys = os.read(_STDIN, 1024)
                if not keys:
                    return
                if self._key(termios.VINTR) in keys:
                    self.was_interrupted = True
                if self._key(termios.VSUSP) in keys:
                    keys = keys.replace(self._key(termios.VSUSP), b"")
                    self._stop(pid)
                while keys:
                    keys = keys[os.write(self.main, keys) :]

    def _key(self, name: int) -> bytes:
        """Return the key that stops or interrupts a job, or what is no key if the child has switched it off."""
        attributes = termios.tcgetattr(self.main)
        key: bytes = attributes[6][name]
        return key if attributes[3] & termios.ISIG and key != b"\0" else b"\xff\xff"

    def _stop(self, pid: int) -> None:
        """Stop the child and ourselves, until the shell continues us.

        The kernel stops no job whose parent is in another session, as ours is, by a key.
        """
        with forwarding.stopped({os.tcgetpgrp(self.main), pid}):
            self._give_back()
            # Whoever shares our pipe too, as by the key. Where no shell could continue us the kernel ignores it.
            os.killpg(os.getpgrp(), signal.SIGTSTP)
            time.sleep(_STOPPING)  # this thread may run on for a moment before it is stopped with the others
            self._take()


def _is_in_foreground(descriptor: int) -> bool:
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False
