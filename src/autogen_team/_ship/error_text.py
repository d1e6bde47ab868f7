"""One-line summaries of exceptions; callers mask them before they display them."""

from __future__ import annotations

_PREAMBLE = "(raised as a result of"  # SQLAlchemy's, about an earlier error


def first_line(error: BaseException) -> str:
    """Return the first line of the message that states the error, or else the name of the exception."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith(_PREAMBLE)), type(error).__name__)


def with_kind(error: BaseException) -> str:
    """Return the name of the exception and, if there is one, the line that states the error."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def root_of(error: BaseException, around: BaseException | None) -> BaseException:
    """Return the root cause of an error; MLflow, requests and urllib3 each wrap it in their own error.

    `around` is an exception that was already being handled, and so did not cause this one.
    """
    while (cause := error.__cause__ or error.__context__) is not None and cause is not around:
        error = cause
    return error
