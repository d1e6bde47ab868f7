"""A pseudo-terminal for the child, because a child whose output is kept cannot write to our terminal.

While we are in the foreground, our terminal passes each key on unchanged, even Ctrl-C. So the child's terminal decides
what a key means. It has the size of ours. Ctrl-Z stops the child and us.
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
"""Seconds between two checks whether we are in the foreground again."""


class Terminal:
    """A pseudo-terminal with the attributes and size of the terminal at `model`, a descriptor of ours."""

    def __init__(self, model: int) -> None:
        self._model = model
        self.main, self.child = os.openpty()
        attributes = termios.tcgetattr(model)
        self.is_fed = os.isatty(_STDIN) and _is_in_foreground(_STDIN)
        """Whether keys go to the child."""
        if not self.is_fed:
            attributes[1] &= ~termios.OPOST  # our terminal already turns a line feed into CR LF
        termios.tcsetattr(self.child, termios.TCSANOW, attributes)
        self.resize()
        self._attributes = termios.tcgetattr(_STDIN) if self.is_fed else None
        self.was_interrupted = False
        """Whether the interrupt key was pressed."""

    def become_controlling(self) -> None:
        """Make it the controlling terminal of the calling process's session; called in the child."""
        fcntl.ioctl(self.child, termios.TIOCSCTTY, 0)

    def resize(self, *_: object) -> None:
        """Give it the size of our terminal."""
        with suppress(OSError):
            fcntl.ioctl(self.main, termios.TIOCSWINSZ, fcntl.ioctl(self._model, termios.TIOCGWINSZ, b"\0" * 8))

    @contextmanager
    def feed(self, pid: int) -> Iterator[None]:
        """Pass keys on to the child, the process `pid`, inside the block."""
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
        """Put our terminal into raw mode, so that keys come unchanged; only while we are in the foreground."""
        if self._attributes is not None and _is_in_foreground(_STDIN):
            with suppress(termios.error):
                tty.setraw(_STDIN, termios.TCSADRAIN)

    def _give_back(self) -> None:
        """Restore the attributes of our terminal, while we are in the foreground."""
        if self._attributes is not None and _is_in_foreground(_STDIN):
            with suppress(termios.error):
                termios.tcsetattr(_STDIN, termios.TCSADRAIN, self._attributes)

    def _feed(self, pid: int) -> None:
        with suppress(OSError, termios.error):
            while True:
                select.select([_STDIN], [], [])
                if not _is_in_foreground(_STDIN):  # reading would stop us
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
        """Return the key that stops or interrupts a job, or bytes that no key sends if the child has disabled it."""
        attributes = termios.tcgetattr(self.main)
        key: bytes = attributes[6][name]
        return key if attributes[3] & termios.ISIG and key != b"\0" else b"\xff\xff"

    def _stop(self, pid: int) -> None:
        """Stop the child and ourselves, until the shell continues us.

        The key alone would not: the kernel does not stop a job whose parent is in another session, as it is here.
        """
        with forwarding.stopped({os.tcgetpgrp(self.main), pid}):
            self._give_back()
            # The other processes of our pipeline too, as by the key. The kernel ignores it if no shell can continue us.
            os.killpg(os.getpgrp(), signal.SIGTSTP)
            time.sleep(_STOPPING)  # this thread may run on for a moment before it is stopped with the others
            self._take()


def _is_in_foreground(descriptor: int) -> bool:
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False
