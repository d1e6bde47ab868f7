"""The target of a run: a Python script, a module, or any command."""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType

from autogen_team._capture.signals import Terminated
from autogen_team.cli import _look
from autogen_team.cli._supervisor import forwarding
from autogen_team.cli._supervisor.forwarding import Forwarding

_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # the exit statuses of a shell


@dataclass(frozen=True, slots=True)
class Target:
    """What to run, and how."""

    name: str
    arguments: list[str]
    """The `sys.argv` of the target, its own name first."""
    folder: str | None
    """The first entry of `sys.path` for the target; None if the target is a command."""
    execute: Callable[[Mapping[str, str]], object]
    """Runs the target; called with the variables by which a command joins the run."""


def parse(words: Sequence[str], *, is_command: bool) -> Target:
    """Return the target that the command line names, or exit with a message that says what is wrong with it."""
    first, *rest = words
    if is_command:
        return _command(first, rest)
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
        hint = f"; to run a command, put -- before it: autogen-team run -- {first}" if shutil.which(first) else ""
        _look.fail(f"there is no script {first!r} in {Path.cwd()}{hint}", _look.WRONG_USAGE)
    if path.is_dir() or zipfile.is_zipfile(path):
        return Target(path.name, [first, *rest], first, lambda _: runpy.run_path(first, run_name="__main__"))
    script = str(path.absolute())
    return Target(path.name, [first, *rest], str(path.resolve().parent), lambda _: _execute(script))


def _execute(script: str) -> None:
    """Execute a script as Python does: by its full path, in a module that stays for pickling and running threads."""
    main = ModuleType("__main__")
    main.__dict__.update(__file__=script, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    with io.open_code(script) as file:
        code = compile(file.read(), script, "exec", dont_inherit=True)  # else our own future imports apply to it
    exec(code, main.__dict__)  # noqa: S102 - the user's own script  # nosec B102


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
        lambda _: runpy.run_module(name, run_name="__main__", alter_sys=True),
    )


class _MainAlias(ModuleType):
    """Alias of the current `__main__`: objects that come back from a spawned worker name the module `__mp_main__`.

    `multiprocessing` makes both names one module when it is first imported, which was before the target. `runpy`
    replaces `__main__` while a module runs.
    """

    def __getattr__(self, name: str) -> object:
        return getattr(sys.modules["__main__"], name)


@contextmanager
def as_main(target: Target) -> Iterator[None]:
    """Set up the interpreter inside the block as if Python itself had started the target."""
    arguments, path = sys.argv, sys.path[:]
    sys.argv = target.arguments
    if target.folder is not None:
        sys.path.insert(0, target.folder)
        sys.modules["__mp_main__"] = _MainAlias("__mp_main__")
    try:
        yield
    finally:
        sys.argv = arguments
        sys.path[:] = path


def _command(first: str, rest: Sequence[str]) -> Target:
    program = shutil.which(first)
    if program is None:
        if Path(first).is_file():
            _look.fail(f"{first!r} is not executable", _NOT_EXECUTABLE)
        _look.fail(f"there is no command {first!r}", _NOT_FOUND)
    command = _Command([first, *rest])
    return Target(Path(first).name, [first, *rest], None, command.execute)


class _Command:
    """A command that runs in a process of its own. It gets the signals that reach us, and we end as it does."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._forward: Forwarding | None = None
        """Set just before the command is started."""
        forwarding.install(self._handle)
        signal.signal(signal.SIGINT, self._interrupt)

    def execute(self, run: Mapping[str, str]) -> None:
        """Run the command, and raise what the end of its process means for the run.

        Raises:
            Terminated: a signal has ended the command.
            SystemExit: the status of the command is not 0, or it cannot be executed.

        """
        self._forward = Forwarding()
        try:
            process = subprocess.Popen(self._words, env={**os.environ, **run})  # noqa: S603 - the user's own command
        except OSError as error:  # such as a script without a shebang line
            _look.fail(f"{self._words[0]!r} cannot be executed: {error.strerror}", _NOT_EXECUTABLE)
        self._forward.to(process)
        status = process.wait()
        if status < 0:
            raise Terminated(-status)
        if status:
            raise SystemExit(status)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._forward is None:  # else the sender has sent it to the command too
            raise KeyboardInterrupt

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._forward is None:
            raise Terminated(number)
        self._forward(number)
