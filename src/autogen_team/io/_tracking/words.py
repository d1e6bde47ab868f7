"""What errors say, in one line; who shows it masks it."""

from __future__ import annotations

_PREAMBLE = "(raised as a result of"  # SQLAlchemy's, of an error that came before


def first_line(error: BaseException) -> str:
    """Return the line that says it, or else the name of the error."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith(_PREAMBLE)), type(error).__name__)


def with_kind(error: BaseException) -> str:
    """Return the name of the error, and the line that says it, if there is one."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"
