"""Prints the output of all commands: ruled tables on a terminal, plain text elsewhere."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, NoReturn, TextIO, cast

from autogen_team._process import streams
from autogen_team.errors import AutogenTeamError, AutogenTeamWarning, ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

WRONG_USAGE = 2
NOT_STARTED = 125  # as with env, nohup and timeout, when they fail themselves, not their command


def console(*, stderr: bool = False) -> Console:
    """Return a console without markup that uses colours only on a terminal; if the stream is None, drop the output."""
    from rich.console import Console

    class _Console(Console):
        """A console that leaves the handling of a closed pipe to the caller."""

        def on_broken_pipe(self) -> None:
            """Raise the error that rich caught; rich itself would exit."""
            raise  # noqa: PLE0704 - called while the error is handled

    stream = sys.stderr if stderr else sys.stdout
    file = io.StringIO() if stream is None else cast("IO[str]", _Unbuffered(stream))
    return _Console(file=file, highlight=False, markup=False, emoji=False)


class _Unbuffered:
    """A stream that bypasses its buffer, so that a full disk or a closed pipe cannot change the exit status."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._texts: list[str] = []

    def write(self, text: str) -> int:
        """Keep the text until `flush`."""
        self._texts.append(text)
        return len(text)

    def flush(self) -> None:
        """Write the kept texts; drop them if that fails."""
        text = "".join(self._texts)
        self._texts.clear()
        streams.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print labelled texts on stderr, each on one line, however long, so that it can be copied."""
    from rich.text import Text

    target = console(stderr=True)
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        target.print(Text.assemble((label.ljust(width), "bold"), "  ", text), soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, stderr: bool = False) -> None:
    """Print a table: ruled on a terminal, otherwise with one line per row, for `grep`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    target = console(stderr=stderr)
    if not target.is_terminal:
        lines = [columns, *rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            target.out("  ".join(cells).rstrip())
        return
    grid = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    target.print(grid)


def as_json(value: object) -> None:
    """Print the value as JSON on stdout, for programs."""
    print(json.dumps(value, indent=2, default=str))  # noqa: T201 - the output of the command


def age(seconds: float) -> str:
    """Return a duration in its largest unit, for display."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def fail(message: str, status: int) -> NoReturn:
    """Print the message as an error and exit."""
    say("error", message, "bold red")
    raise SystemExit(status)


def assignments(texts: Iterable[str], option: str) -> dict[str, str]:
    """Split `key=value` texts; exit with a usage error that names the option if a text has no key or no `=`."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            fail(f"{option} takes KEY=VALUE, not {text!r}", WRONG_USAGE)
        pairs[key.strip()] = value
    return pairs


_STYLES = {"bold": "1", "bold red": "1;31", "yellow": "33"}


def say(kind: str, message: str, style: str) -> None:
    """Print a line on stderr that begins with its kind; without rich, so that a supervised job starts sooner."""
    stream = sys.stderr
    if stream is None:
        return
    with suppress(OSError, ValueError):  # a lost message must not end the process
        is_plain = (
            not stream.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") in (None, "dumb", "unknown")
        )
        label = f"{kind}: " if is_plain else f"\x1b[{_STYLES[style]}m{kind}: \x1b[0m"
        streams.write(stream, f"{label}{message}\n")


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print each of our own warnings as one line."""
    with warnings.catch_warnings():
        previous = warnings.showwarning

        def show(message, category, filename, lineno, file=None, line=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            if issubclass(category, AutogenTeamWarning):
                say("warning", str(message), "yellow")
            else:
                previous(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


@contextmanager
def plain_errors(status: int = 1) -> Iterator[None]:
    """Print each of our own errors as one line, without a traceback, and exit."""
    try:
        yield
    except ConfigurationError as error:
        fail(str(error), WRONG_USAGE)
    except AutogenTeamError as error:
        fail(str(error), status)
