"""`autogen-team run`: a Python script or module inside the global context and one run."""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import runpy
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.thread import _threads_queues
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NoReturn

from autogen_team.cli import _context, _look, _summary
from autogen_team.context import GlobalContext

_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Target:
    """What is run."""

    name: str
    arguments: list[str]
    """What the target finds in `sys.argv`, itself first."""
    folder: str
    """What the target finds first on `sys.path`."""
    execute: Callable[[], object]


def run(
    command: Sequence[str],
    *,
    name: str | None,
    description: str | None,
    tags: Sequence[str],
    overrides: Mapping[str, str],
) -> NoReturn:
    """Run the command, and exit as it does."""
    target = parse(command)
    config = {"description": description, "tags": _context.assignments(tags, "--tag") or None}
    sys.excepthook = sys.__excepthook__  # Typer has one of its own, which is not for the target's exceptions
    with _look.plain_warnings(), _look.plain_errors(_look.NOT_STARTED):
        context = _context.build(overrides)
        if _is_default(context, "logger.backtrace"):
            # The stack above the target is ours, and of no interest to anybody who reads the log.
            overrides = {**overrides, "logger.backtrace": "false"}
            logger_service = context.logger_service.model_copy(update={"backtrace": False})
            context = context.model_copy(update={"logger_service": logger_service})
    with _look.plain_errors(_look.NOT_STARTED):
        context.start()
    status = 0
    try:
        with (
            _environment(_context.variables_of(overrides)),
            _as_main(target),
            _summary.of_run(context) as summary,
            context.run(name or target.name, host=True, **config) as active,
        ):
            summary.run_id = active.info.run_id
            with _reported():
                _execute_and_wait(target)
    except SystemExit as error:
        status = _status(error.code)
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except Exception:  # has been reported
        status = 1
    finally:
        context.stop()
    raise SystemExit(status)


def _is_default(context: GlobalContext, name: str) -> bool:
    return any(setting.name == name and setting.source == "default" for setting in context.settings())


def parse(command: Sequence[str]) -> Target:
    """Return the target that the words of the command line name, or exit saying what is wrong with them."""
    first, *rest = command
    if first == "-m":
        if not rest:
            _look.fail("-m takes the name of a module", _look.WRONG_USAGE)
        return _module(rest[0], rest[1:])
    if first == "-":
        _look.fail("a script on standard input cannot be run: save it to a file", _look.WRONG_USAGE)
    if first.startswith("-"):
        _look.fail(f"there is no option {first!r}; see autogen-team run --help", _look.WRONG_USAGE)
    path = Path(first)
    if not path.exists():
        _look.fail(f"there is no script {first!r} in {Path.cwd()}", _look.WRONG_USAGE)
    if path.is_dir() or zipfile.is_zipfile(path):
        return Target(path.name, [first, *rest], first, lambda: runpy.run_path(first, run_name="__main__"))
    script = str(path.absolute())
    return Target(path.name, [first, *rest], str(path.resolve().parent), lambda: _execute(script))


def _execute(script: str) -> None:
    """Execute a script as Python does: by its full name, in a module that stays, for what is pickled or still runs."""
    main = ModuleType("__main__")
    main.__dict__.update(__file__=script, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = main
    with io.open_code(script) as file:
        code = compile(file.read(), script, "exec")
    exec(code, main.__dict__)  # noqa: S102 - the user's own script


def _execute_and_wait(target: Target) -> None:
    """Execute the target and wait for its threads, as Python does before it exits: they still belong to the run."""
    try:
        target.execute()
    except SystemExit as error:
        if type(error) is SystemExit:  # not by a signal, which wants an end now
            _wait_for_threads()
        raise
    _wait_for_threads()


def _wait_for_threads() -> None:
    for thread in threading.enumerate():
        is_its_own = not thread.daemon and thread is not threading.current_thread()
        if is_its_own and thread not in _threads_queues:  # those of executors wait for work until the very end
            thread.join()


def _module(name: str, arguments: Sequence[str]) -> Target:
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            _look.fail(f"the module {name!r} cannot be imported: {error}", _look.WRONG_USAGE)
        found = None
    except Exception as error:
        _look.fail(f"the module {name!r} cannot be imported: {type(error).__name__}: {error}", _look.WRONG_USAGE)
    finally:
        del sys.path[0]
    if found is None:
        _look.fail(f"there is no module {name!r}", _look.WRONG_USAGE)
    return Target(
        name,
        [found.origin or name, *arguments],
        str(Path.cwd()),
        lambda: runpy.run_module(name, run_name="__main__", alter_sys=True),
    )


@contextmanager
def _as_main(target: Target) -> Iterator[None]:
    """Show the target the interpreter as if Python itself had started it."""
    arguments, path = sys.argv, sys.path[:]
    sys.argv = target.arguments
    sys.path.insert(0, target.folder)
    try:
        yield
    finally:
        sys.argv = arguments
        sys.path[:] = path


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Let a context that the target makes itself see the options of the command line."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _reported() -> Iterator[None]:
    """Report an uncaught exception while the run is open, so that its log has it, without our own frames."""
    try:
        yield
    except Exception as error:
        error.__traceback__ = _from_target(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        raise


def _from_target(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_code.co_filename in _OURS:
        traceback = traceback.tb_next
    return traceback


_OURS = {__file__, runpy.__file__, "<frozen runpy>"}


def _status(code: object) -> int:
    """Return the status with which Python would exit."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code
    print(code, file=sys.stderr)  # noqa: T201 - as Python does
    return 1
