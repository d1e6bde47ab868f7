"""Parses durations on the command line: `90s`, `5m`, `2h`."""

from __future__ import annotations

import typer

from autogen_team._process import durations


def seconds(text: str) -> float:
    """Return a duration in seconds.

    Raises:
        typer.BadParameter: the text is not a duration, or it is zero.

    """
    try:
        return durations.seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def checked(text: str) -> str:
    """Return the text unchanged if it is a duration.

    Raises:
        typer.BadParameter: the text is not a duration, or it is zero.

    """
    seconds(text)
    return text
