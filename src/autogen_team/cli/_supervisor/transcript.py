"""The output of a job as plain lines of text: without colours, and with only the last state of a progress bar."""

from __future__ import annotations

import codecs
import os
import re
import threading
from pathlib import Path

from autogen_team._process import identity, run_events
from autogen_team._process.folders import private_folder
from autogen_team._redact import Redactor

_SEGMENT = 16 * 2**20
"""Size in bytes at which a new file starts, so that a long transcript is never uploaded as a whole again."""
_WAITING = 1000
"""Number of lines that are kept until the run is known; there are few, because the run opens while the job starts."""
_LONGEST = 64 * 2**10
"""Number of characters after which an unfinished line is written as it is."""
_CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, movements
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]"
)


class Transcript:
    """Lines of output, which are kept until their run is known, and then written to a file of that run.

    An error here does not affect the output itself.
    """

    def __init__(self) -> None:
        self._name = f"output-{identity.process_name()}"
        self._number = 1
        self._size = 0
        self._mask: Redactor | None = Redactor(os.environ)
        self._pending: dict[str, _Line] = {}
        self._waiting: list[str] = []
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._descriptor: int | None = None
        self._is_wanted = True

    def add(self, stream: str, data: bytes) -> None:
        """Add bytes from a stream; an unfinished line waits for its end."""
        with self._lock:
            if self._is_wanted:
                line = self._pending.setdefault(stream, _Line())
                self._write(line.complete(data))

    def flush(self) -> None:
        """Write the unfinished lines."""
        with self._lock:
            if self._is_wanted:
                self._write([rest for line in self._pending.values() if (rest := line.take_rest())])

    def belongs_to(self, run_id: str, state: Path, *, masked: bool, attempt: int = 1) -> None:
        """Write the kept lines, and all further ones, to the folder of this run.

        From the second `attempt` of a job on, the file names include its number.
        """
        with self._lock:
            self._folder = run_events.log_folder(state, run_id)
            if attempt > 1:
                self._name += f"-attempt-{attempt}"
            if not masked:
                self._mask = None
            lines, self._waiting = self._waiting, []
            self._write(lines)

    def discard(self) -> None:
        """Drop all further lines, because the run keeps no log."""
        with self._lock:
            self._is_wanted = False

    def close(self) -> None:
        """Write the unfinished lines, and close the file."""
        self.flush()
        with self._lock:
            self._close()

    def _write(self, lines: list[str]) -> None:
        if self._folder is None:
            self._waiting = [*self._waiting, *lines][-_WAITING:]
            return
        if not lines:
            return
        text = "".join(f"{line}\n" for line in lines)
        data = (self._mask(text) if self._mask else text).encode("utf-8", "replace")
        try:
            if self._descriptor is None:
                path = private_folder(self._folder) / (
                    self._name + (f"_{self._number:04d}" if self._number > 1 else "") + ".log"
                )
                self._descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            os.write(self._descriptor, data)
        except OSError:  # for example, a full disk: the job matters more than its transcript
            return
        self._size += len(data)
        if self._size >= _SEGMENT:
            self._close()
            self._number += 1
            self._size = 0

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Line:
    """The unfinished line of a stream."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._text = ""

    def complete(self, data: bytes) -> list[str]:
        """Add bytes, and return the lines that are now complete."""
        *whole, rest = (self._text + self._decode(data)).split("\n")
        if len(rest) > _LONGEST:
            _, bar, now = rest.rstrip("\r").rpartition("\r")
            if bar and len(now) <= _LONGEST:
                rest = f"\r{now}"
            else:
                whole.append(rest)
                rest = ""
        self._text = rest
        return [line for line in map(_as_shown, whole) if line is not None]

    def take_rest(self) -> str | None:
        """Return the unfinished line, and start a new one."""
        rest, self._text = self._text, ""
        return _as_shown(rest) or None


def _as_shown(line: str) -> str | None:
    r"""Return the final state of a line, without overwritten text; None if only overwritten blanks remain.

    >>> _as_shown("10%|#   |\r100%|####|\x1b[0m\r")
    '100%|####|'
    """
    states = [_CONTROLS.sub("", state) for state in line.split("\r")]
    shown = next((state for state in reversed(states) if state.strip()), None)
    return shown if shown is not None else (None if len(states) > 2 else "")
