"""The target of a run: the command line that Python or the system executes, and its name."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from autogen_team.cli import _look

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autogen_team.cli._supervisor.wire import Order

NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # the exit statuses of a shell
_WITH_VALUE = {"-W", "-X", "--check-hash-based-pycs"}


def command_line(order: Order) -> list[str]:
    """Return the words to execute, or exit with an error message."""
    first = order.command[0]
    if order.is_command:
        _check_command(first)
        return order.command
    if first == "-m" and len(order.command) < 2:
        _look.fail("-m needs the name of a module", _look.WRONG_USAGE)
    if first == "-c" and len(order.command) < 2:
        _look.fail("-c needs a program", _look.WRONG_USAGE)
    if first.startswith("-m"):
        _check_module(module(order.command))
    elif first.startswith("-") and first != "-" and not first.startswith("-c"):
        _look.fail(f"unknown option {first!r}; see autogen-team run --help", _look.WRONG_USAGE)
    elif not first.startswith("-"):
        _check_script(first)
    return [sys.executable, *interpreter_flags(), *order.command]


def name(order: Order) -> str:
    """Return the name of the target, which is the default name of its run."""
    first = order.command[0]
    if order.is_command or not first.startswith("-"):
        return Path(first).name or first
    return module(order.command) if first.startswith("-m") else f"python {first[:2]}"


def arguments(order: Order) -> list[str]:
    """Return the `sys.argv` of the target, as far as it is known before the target runs."""
    first, *rest = order.command
    if order.is_command or not first.startswith("-"):
        return [first, *rest]
    own = 2 if first in ("-m", "-c") else 1
    words = order.command[own:]
    return [module(order.command) if first.startswith("-m") else first[:2], *words]


def module(command: Sequence[str]) -> str:
    """Return the name of the module after `-m`, in the same word or in the next."""
    return command[0][2:] or command[1]


def interpreter_flags() -> list[str]:
    """Return the flags of this interpreter, such as `-O`, `-u` or `-X dev`."""
    flags: list[str] = []
    words = iter(sys.orig_argv[1:])
    for word in words:
        if not word.startswith("-") or word[:2] in ("-m", "-c") or word == "-":
            break
        flags.append(word)
        if word in _WITH_VALUE:
            flags.append(next(words, ""))
    return flags


def takes_bootstrap() -> bool:
    """Return whether an interpreter with our flags loads the `sitecustomize` of its PYTHONPATH."""
    return not (sys.flags.isolated or sys.flags.ignore_environment or sys.flags.no_site)


def script(order: Order) -> str | None:
    """Return the file or folder with the code of the target; None for a command, `-c`, and standard input."""
    first = order.command[0]
    if order.is_command or first == "-" or first.startswith("-c"):
        return None
    if not first.startswith("-m"):
        return os.path.abspath(first)  # noqa: PTH100 - a link must not be resolved
    found = _find_package(module(order.command))
    return None if found is None or found.origin is None else found.origin


def _check_script(first: str) -> None:
    if not Path(first).exists():
        hint = f"; to run a command, put -- before it: autogen-team run -- {first}" if shutil.which(first) else ""
        _look.fail(f"script {first!r} not found in {Path.cwd()}{hint}", _look.WRONG_USAGE)


def _check_module(name: str) -> None:
    """Reject a module whose outermost package does not exist; only the job imports it."""
    if _find_package(name) is None:
        _look.fail(f"no module named {name!r}", _look.WRONG_USAGE)


def _find_package(name: str) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of a module's outermost package without importing it."""
    outermost = name.partition(".")[0]
    with suppress(ImportError, ValueError):
        found = importlib.machinery.PathFinder.find_spec(outermost, [os.fspath(Path.cwd())])
        return found or importlib.util.find_spec(outermost)
    return None


def _check_command(first: str) -> None:
    if shutil.which(first) is None:
        if Path(first).is_file():
            _look.fail(f"{first!r} is not executable", NOT_EXECUTABLE)
        _look.fail(f"command {first!r} not found", _NOT_FOUND)
