"""Validates the settings of logging: level, format and sink, with errors that list valid values."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import loguru

from autogen_team._logs import loguru_internals
from autogen_team._logs.console import Console
from autogen_team._logs.file import File
from autogen_team._logs.rotation import RotatingFile
from autogen_team._logs.text import Extra, Template
from autogen_team._process import identity
from autogen_team.errors import ConfigurationError

if TYPE_CHECKING:
    from autogen_team._services.logger import LoggerService


def level(text: str) -> str | int:
    """Return the level as loguru expects it; the text is a name in any case, or a number.

    Raises:
        ConfigurationError: the level does not exist.

    """
    name = text.strip()
    for candidate in (name, name.upper()):
        try:
            return loguru.logger.level(candidate).name
        except ValueError:
            continue
    if name.isdecimal():
        return int(name)
    known = ["TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL"]
    near = difflib.get_close_matches(name.upper(), known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigurationError(f"the log level {text!r} does not exist; {hint}use {', '.join(known)}, or a number")


def template(format: str) -> Template:  # noqa: A002 - the user story's word
    """Return the parsed format, after a trial with a sample record.

    Raises:
        ConfigurationError: the format is empty, malformed, or has an unknown field.

    """
    if not format.strip():
        raise ConfigurationError("the log format is empty; use for example '{level} {message}'")
    record = loguru_internals.make_record("INFO", "a message", name=__name__)
    try:
        made = Template(format)
        made.plain(record, Extra(), "")
    except KeyError as error:
        fields = ", ".join(sorted(record))
        raise ConfigurationError(
            f"the log format {format!r} has an unknown field: {error}; known fields are {fields}, "
            "and {extra[name]} for bound values"
        ) from error
    except Exception as error:
        raise ConfigurationError(f"the log format {format!r} cannot be used: {error}") from error
    return made


def destination(settings: LoggerService) -> tuple[Console | File, str]:
    """Open the destination of the lines; return it with its canonical name.

    Raises:
        ConfigurationError: the sink, or its rotation, retention or compression, cannot be used.

    """
    text = settings.sink.strip()
    rotation, retention, compression = (
        int(value) if isinstance(value, str) and value.strip().isdecimal() else value
        for value in (settings.rotation, settings.retention, settings.compression)
    )
    name = text.lower()
    if name in ("stderr", "stdout"):
        for field in ("rotation", "retention", "compression"):
            if getattr(settings, field) is not None:
                raise ConfigurationError(
                    f"the log sink {name} has no files, so {field}={getattr(settings, field)!r} has no effect: "
                    "use a file as sink, or remove it"
                )
        return Console("stderr" if name == "stderr" else "stdout", colorize=settings.colorize), name
    if not text:
        raise ConfigurationError("the log sink is empty; use stderr, stdout or the path of a file")
    path = str(Path(text).expanduser().absolute())
    if text.endswith(("/", os.sep)) or Path(path).is_dir():
        raise ConfigurationError(
            f"the log sink {text!r} is a folder; use a file in it, such as {text.rstrip('/')}/job.log"
        )
    path = _of_this_process(path)
    try:
        if "{" in path or any(value is not None for value in (rotation, retention, compression)):
            file: File = RotatingFile(path, rotation, retention, None if compression is None else str(compression))
        else:
            file = File(path)
    except OSError as error:
        raise ConfigurationError(
            f"the log sink {text!r} cannot be written: {error.strerror or error}; use another file, or stderr"
        ) from error
    except (KeyError, IndexError) as error:
        raise ConfigurationError(f"the log sink {text!r} has braces; only {{time}} is allowed in them") from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"the log file {text!r} cannot be rotated or kept as configured: {error}") from error
    return file, os.path.realpath(path)


def _of_this_process(path: str) -> str:
    """Return a worker's own path, `train-<host>-<pid>.log` beside `train.log`; in the job itself, `path` unchanged."""
    worker = identity.worker()
    if worker is None or (Path(path).exists() and not Path(path).is_file()):  # all processes share /dev/null
        return path
    stem, extension = os.path.splitext(path)  # noqa: PTH122 - as loguru does with rotated files
    return f"{stem}-{worker}{extension}"
