"""Python processes forked from one that has already imported MLflow.

A test's process spends nearly all its CPU time on importing MLflow and SQLAlchemy: two to four seconds, seven for an
MLflow server. The fact that the test states takes milliseconds. A fork server imports them once and forks a process
for each request. The process has its own environment, folder, streams, arguments and `__main__`, and ends as any Python
process does. It imports loguru, typer and autogen_team itself, because these read the environment.

Three things differ from a fresh interpreter. MLflow is in `sys.modules` from the beginning. The stack has frames of
this module below `__main__`. After the exit functions, the remaining objects are not torn down one by one. Tests about
any of these start a fresh interpreter, and with `FRESH_PROCESSES=1` the whole suite does.
"""

from __future__ import annotations

import _posixsubprocess
import atexit
import ctypes
import fcntl
import gc
import importlib
import importlib.abc
import io
import itertools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

from testkit import known_state

FOLDER = "FORK_SERVERS"
"""Environment variable with the folder of the sockets."""
FRESH_AGENTS = "FRESH_AGENTS"
"""Environment variable that disables forking of agents, for tests of an agent's start, memory and command line."""
FORKED_CHILDREN = "FORKED_CHILDREN"
"""Environment variable that enables forking of a process's workers and of its supervised job; see `_Nursery`."""
_SUPERVISED = "AUTOGEN_TEAM_JOB_SOCKET"
_PATH_OF_JOB = "AUTOGEN_TEAM_JOB_PYTHONPATH"
_AGENTS = {f"autogen-team-agent{work}" for work in ("", "-recovery", "-report", "-upload")}
PRELOADED = {
    "job": (
        "mlflow",
        "mlflow.store.tracking.sqlalchemy_store",
        "mlflow.store.model_registry.sqlalchemy_store",
        "mlflow.store.workspace_aware_mixin",
        "mlflow.system_metrics.system_metrics_monitor",
        "mlflow.tracing.export.mlflow_v3",
        "IPython",
        "alembic.command",
        "concurrent.futures.process",
        "git",
        "logging.config",
        "orjson",
        "platformdirs",
        "psutil",
        "pydantic_settings",
        "rich.console",
        "rich.table",
        "sqlalchemy.dialects.sqlite",
    ),
    "server": ("mlflow.cli", "uvicorn.main", "mlflow.server.fastapi_app", "mlflow.store.tracking.sqlalchemy_store"),
}
"""Modules that each fork server imports at the first request, before it forks."""
_SERVE = (
    "import sys; sys.path.append({support!r}); from testkit.forkserver import serve; serve({kind!r}, {descriptor})()"
)
_SUPPORT = str(Path(__file__).parent.parent)
_IMITATED = {"PYTHONUNBUFFERED", "PYTHONSAFEPATH", "PYTHONDONTWRITEBYTECODE"}
_LONGEST_REQUEST = 2**18


@contextmanager
def running() -> Iterator[None]:
    """Run the fork servers for this process and those that inherit its environment; do nothing if unsupported."""
    if not hasattr(os, "pidfd_open") or os.environ.get("FRESH_PROCESSES") or FOLDER in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="autogen-team-") as folder:
        alive, ours = os.pipe()
        os.environ[FOLDER] = folder
        Path(folder, "session").write_text(str(os.getsid(0)))
        servers = [_start(kind, folder, alive) for kind in PRELOADED]
        os.close(alive)
        try:
            yield
        finally:
            del os.environ[FOLDER]
            os.close(ours)
            for server in servers:
                server.wait()


def _start(kind: str, folder: str, alive: int) -> subprocess.Popen[bytes]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{folder}/{kind}")
        listener.listen(64)
        code = _SERVE.format(support=_SUPPORT, kind=kind, descriptor=listener.fileno())
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=alive,  # end of file means that pytest has exited
            pass_fds=[listener.fileno()],
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "_MLFLOW_SGI_NAME": "uvicorn"},
        )


def popen(arguments: Sequence[str], *, kind: str = "job", fresh: bool = False, **options: Any) -> subprocess.Popen[Any]:
    """Start `python ARGUMENTS...` with the options of `subprocess.Popen`; fork it if possible, unless `fresh`."""
    is_plain = not arguments[0].startswith("-") or arguments[0] in {"-c", "-m"}
    if fresh or not is_plain or not _can_fork(options.get("env") or os.environ):
        return subprocess.Popen([sys.executable, *arguments], **options)
    return _Forked([sys.executable, *arguments], kind, **options)


def _can_fork(environment: Mapping[str, str]) -> bool:
    """Return whether a fork server runs, and no `PYTHON*` variable asks for a different interpreter."""
    wanted, here = (
        {name: value for name, value in variables.items() if name.startswith("PYTHON") and name not in _IMITATED}
        for variables in (environment, os.environ)
    )
    return FOLDER in environment and wanted == here


class _Forked(subprocess.Popen):  # type: ignore[type-arg]
    """A `subprocess.Popen` whose process a fork server starts and awaits; a plain one if `kind` is None."""

    _connection: socket.socket | None = None

    def __init__(self, args: Any, kind: str | None, **options: Any) -> None:
        self._kind = kind
        super().__init__(args, **options)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest) -> None:
        # Popen's own hook that starts the process; Popen calls it after creating the pipes.
        if self._kind is None:
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        _startupinfo, _flags, _shell, *pipes, _signals, _gid, _gids, _uid, _umask, start_new_session, _group = rest
        p2cread, _, _, c2pwrite, _, errwrite = pipes
        request = {
            "arguments": [*itertools.dropwhile({"-I", "-S"}.__contains__, args[1:])],
            "folder": os.fspath(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            # A recovery belongs to the agent's session, and the fork server does not.
            "group": None if start_new_session or not _AGENTS.isdisjoint(args) else os.getpgrp(),
            "inherited": list(pass_fds),
            "ignored": [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN],
        }
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST_REQUEST)
        self._connection.connect(f"{os.environ[FOLDER]}/{self._kind}")
        streams = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        socket.send_fds(self._connection, [json.dumps(request).encode()], [*streams, *pass_fds])
        self._close_pipe_fds(*pipes)
        self._child_created = True
        self.pid = int(self._connection.recv(64))

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._connection is None:
            return super()._try_wait(wait_flags)
        if wait_flags & os.WNOHANG and not select.select([self._connection], [], [], 0)[0]:
            return 0, 0
        status = int(self._connection.recv(64) or signal.SIGKILL)  # if a signal interrupts this call, Popen repeats it
        self._connection.close()
        return self.pid, status

    def _internal_poll(self, **state: Any) -> int | None:
        if self._connection is None:
            return super()._internal_poll(**state)
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid == self.pid:
                self._handle_exitstatus(status)
        return self.returncode


def shell_commands(folder: Path) -> None:
    """Write `python` and `autogen-team` for the PATH of a shell; fork their processes if a fork server runs."""
    for name in ("python", "autogen-team"):
        if FOLDER in os.environ:
            source = Path(__file__).with_name("forked_python.py").read_text()
            (folder / name).write_text(f"#!{sys.executable} -IS\n" + source)
            (folder / name).chmod(0o755)
        else:
            (folder / name).symlink_to(Path(sys.executable).with_name(name))


class ForkingPopen(_Forked):
    """Replacement of `subprocess.Popen` in the test process: agents that it starts are forked."""

    def __init__(self, args: Any, *more: Any, **options: Any) -> None:
        is_python = not more and isinstance(args, list) and args[0] == sys.executable
        if is_python and _can_fork(options.get("env") or os.environ) and self._is_forked(args, options):
            super().__init__(args, "server" if {"server", "uvicorn"} & set(args) else "job", **options)
        else:
            self._kind = None
            _plain_init(self, args, *more, **options)

    def _is_forked(self, args: list[str], options: Mapping[str, Any]) -> bool:
        # Most of an agent's cost is importing MLflow, and each test has its own agent.
        return not _AGENTS.isdisjoint(args) and FRESH_AGENTS not in (options.get("env") or os.environ)


class _Popen(ForkingPopen):
    """Replacement of `subprocess.Popen` in a forked process: `python -c` and `python -m` are forked as well.

    A process is not forked if the caller could notice it: by its session, or by a `preexec_fn` between fork and exec.
    The job of a supervisor is forked by the nursery, unless it has a terminal of its own.
    """

    def __init__(self, args: Any, *more: Any, **options: Any) -> None:
        self._is_job = (
            _nursery is not None
            and isinstance(args, list)
            and args[0] == sys.executable
            and (not args[1].startswith("-") or args[1] in {"-c", "-m"})
            and _SUPERVISED in (options.get("env") or ())
            and options["env"].get(_PATH_OF_JOB) == os.environ.get("PYTHONPATH")
            and not options["start_new_session"]
        )
        super().__init__(args, *more, **options)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest) -> None:
        if not self._is_job:
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        assert _nursery is not None
        _startupinfo, _flags, _shell, *pipes, _signals, _gid, _gids, _uid, _umask, _new_session, _group = rest
        p2cread, _, _, c2pwrite, _, errwrite = pipes
        streams = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        inherited = _inherited()
        self.pid = _nursery.child(
            args[1:],
            [*streams, *inherited],
            environment=dict(env),
            group=os.getpgrp(),
            inherited=inherited,
            ignored=[number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN],
        )
        self._close_pipe_fds(*pipes)
        self._child_created = True

    def _is_forked(self, args: list[str], options: Mapping[str, Any]) -> bool:
        stays = options.get("start_new_session") or os.getsid(0) == _session
        is_ours = args[1] in {"-c", "-m"} and stays and not options.get("preexec_fn") and _AGENTS.isdisjoint(args)
        return is_ours or super()._is_forked(args, options)


def _inherited() -> list[int]:
    """Return the descriptors, but for the standard streams, that a new program would inherit."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the folder's own
            if int(entry.name) > 2 and os.get_inheritable(int(entry.name)):
                found.append(int(entry.name))
    return found


class _Nursery:
    """A child of a forked process that was forked before that process began, and forks its children from that state.

    They are the workers that `multiprocessing` spawns, its fork server, the workers of loky, and the job of a
    supervisor. A new interpreter would import MLflow anew for each of them. They are true children: the nursery lets a
    process fork them that exits, and their parent adopts orphans meanwhile.
    """

    def __init__(self, connection: socket.socket, streams: Sequence[int]) -> None:
        """Fork the nursery, which closes the connection and the streams of the job."""
        self.main: Callable[[], None] | None = None
        """The main program of this process, if it is a worker."""
        self._plain = _posixsubprocess.fork_exec
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        job = os.getpid()
        if os.fork() == 0:
            _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
            ours.close()
            for descriptor in (connection.detach(), *streams):
                os.close(descriptor)
            while self.main is None:
                if os.getppid() != job:
                    os._exit(0)
                self._fork(theirs)
            return
        theirs.close()
        # A number that no job expects for its own.
        self._socket = socket.socket(fileno=fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD_CLOEXEC, 300))
        ours.close()

    def _fork(self, theirs: socket.socket) -> None:
        """Fork a worker for the next request; in the worker, set its main program."""
        message, streams, _, _ = socket.recv_fds(theirs, _LONGEST_REQUEST, 16)
        if not message:
            os._exit(0)
        between = os.fork()
        if between == 0:
            between, worker = os.getpid(), os.fork()
            if worker:
                theirs.send(str(worker).encode())
                os._exit(0)
            theirs.close()
            while os.getppid() == between:
                time.sleep(0.001)
            self.main = _become(json.loads(message), streams)
            return
        for stream in streams:
            os.close(stream)
        os.waitpid(between, 0)
        theirs.send(b"adopted")

    def adopt(self) -> None:
        """From now on, fork these children of this process instead of starting an interpreter."""
        global _nursery
        _nursery = self
        _posixsubprocess.fork_exec = self._fork_exec

    def child(self, arguments: Sequence[str], streams: Sequence[int], **request: Any) -> int:
        """Fork a child with three standard streams, followed by the inherited descriptors; return its id."""
        request = {"arguments": arguments, "folder": os.fspath(Path.cwd()), **request}
        with self._lock:
            _libc.prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)
            try:
                socket.send_fds(self._socket, [json.dumps(request).encode()], streams)
                pid = int(self._socket.recv(64))
                self._socket.recv(64)
            finally:
                _libc.prctl(_ADOPT_ORPHANS, 0, 0, 0, 0)
        return pid

    def _fork_exec(self, args: Sequence[str | bytes], *rest: Any) -> int:
        words = [os.fsdecode(word) for word in args[1:]]
        is_worker = words[0] in {"-c", "-m"} and _WORKERS.intersection(words[1].split()[:2])
        if not is_worker or os.getsid(0) != _session:
            return self._plain(args, *rest)
        _, _, inherited, _, variables, *_ = rest
        given = None if variables is None else dict(os.fsdecode(pair).split("=", 1) for pair in variables)
        return self.child(
            words,
            [0, 1, 2, *inherited],
            environment=given or dict(os.environ),
            group=os.getpgrp(),
            inherited=list(inherited),
            ignored=[],
        )


class _Loaded(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes the import of MLflow look like the first one, although the module is loaded already."""

    def __init__(self) -> None:
        self._modules = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "mlflow"}
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """Find MLflow, whose import brings all its modules back."""
        return spec_from_file_location(name, self._modules[name].__file__, loader=self) if name == "mlflow" else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """Return the module that is loaded."""
        return self._modules[spec.name]

    def exec_module(self, _module: types.ModuleType) -> None:
        """Execute nothing."""
        sys.meta_path.remove(self)
        sys.modules.update(self._modules)


def _begin_job() -> None:
    """Do what a new interpreter does in a supervised job before the job's own code."""
    _Loaded()
    sys.path.insert(0, os.environ["PYTHONPATH"].split(os.pathsep)[0])
    try:
        import sitecustomize  # noqa: F401
    except ImportError as error:
        if error.name != "sitecustomize":
            raise


_nursery: _Nursery | None = None
_WORKERS = {"multiprocessing.spawn", "multiprocessing.forkserver", "joblib.externals.loky.backend.popen_loky_posix"}
"""The main modules of workers."""
_DIE_WITH_PARENT, _ADOPT_ORPHANS = 1, 36
"""Options of `prctl`: PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER."""
_libc = ctypes.CDLL(None)
_status: int | None = None
"""The exit status of this process, once its main program has ended."""
_replaced: list[Any] = []
"""Streams of the fork server; kept alive, because freeing one would close its descriptor."""
_session = 0
"""The session of the fork server."""
_plain_init = subprocess.Popen.__init__


def serve(kind: str, descriptor: int) -> Callable[[], None]:
    """Fork a process for each request until pytest exits; in a forked process, return its main program."""
    known_state.reset_signals()
    atexit.register(_exit_now)  # registered first, so called last
    listener = socket.socket(fileno=descriptor)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(0, select.POLLIN)
    children: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready, _ in poll.poll():
            if ready == 0:
                os._exit(0)
            if ready in children:  # the child has exited
                pid, connection = children.pop(ready)
                poll.unregister(ready)
                os.close(ready)
                with connection, suppress(OSError):
                    connection.send(str(os.waitpid(pid, 0)[1]).encode())
                continue
            _preload(kind)
            accepted = listener.accept()[0]
            connection = socket.socket(fileno=fcntl.fcntl(accepted.fileno(), fcntl.F_DUPFD_CLOEXEC, 100))
            accepted.close()  # a forked process may need its descriptor number
            message, streams, _, _ = socket.recv_fds(connection, _LONGEST_REQUEST, 16)
            pid = os.fork()
            if pid == 0:
                listener.close()
                for pidfd, (_, other) in children.items():
                    os.close(pidfd)
                    other.close()
                wanted = json.loads(message)
                nursery = _Nursery(connection, streams) if FORKED_CHILDREN in wanted["environment"] else None
                if nursery is not None and nursery.main is not None:
                    return nursery.main
                main = _become(wanted, streams)
                if nursery is not None:
                    nursery.adopt()
                connection.send(str(os.getpid()).encode())  # the caller now sees a new process
                connection.close()
                return main
            for stream in streams:
                os.close(stream)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = (pid, connection)
            poll.register(pidfd, select.POLLIN)


def _preload(kind: str) -> None:
    if "mlflow" not in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in PRELOADED[kind]:
                importlib.import_module(name)
        sys.modules["sqlalchemy.orm"].configure_mappers()
        gc.collect()
        gc.freeze()  # otherwise the first collection in a forked process copies all that memory


def _become(request: Mapping[str, Any], streams: Sequence[int]) -> Callable[[], None]:
    """Turn this process into the requested one, and return its main program."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 200) for descriptor in streams]
    for descriptor in streams:
        os.close(descriptor)
    for number, descriptor in zip([0, 1, 2, *request["inherited"]], high, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number in {*request["ignored"]} - {signal.SIGPIPE, signal.SIGXFSZ}:
        signal.signal(number, signal.SIG_IGN)
    global _session
    _session = os.getsid(0)
    if request["group"] is None:
        os.setsid()
    else:
        os.setpgid(0, request["group"])
    subprocess.Popen = _Popen  # type: ignore[misc]
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ.pop(FORKED_CHILDREN, None)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    if os.environ.get("PYTHONUNBUFFERED"):
        for number, name in ((1, "stdout"), (2, "stderr")):
            stream = getattr(sys, name)
            raw = io.FileIO(number, "w", closefd=False)
            made = io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True, write_through=True)
            setattr(sys, name, made)
            setattr(sys, f"__{name}__", made)
            _replaced.append(stream)
    if _SUPPORT in sys.path:
        sys.path.remove(_SUPPORT)
    sys.orig_argv[1:] = request["arguments"]
    if _SUPERVISED in os.environ:
        _begin_job()
    main = types.ModuleType("__main__")
    for name in {"__main__", "__mp_main__"} & set(sys.modules):
        sys.modules[name] = main
    first, *rest = request["arguments"]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        return _reporting(lambda: _execute(rest[0], "<string>", main))
    if first == "-m":
        sys.argv = rest
        del sys.path[0]
        if not os.environ.get("PYTHONSAFEPATH"):
            sys.path.insert(0, os.fspath(Path.cwd()))
        return _reporting(lambda: runpy.run_module(rest[0], run_name="__main__", alter_sys=True))
    sys.argv = [first, *rest]
    script = Path(first).absolute()
    sys.path[0] = os.fspath(script.resolve().parent)
    main.__file__ = os.fspath(script)
    return _reporting(lambda: _execute(script.read_bytes(), os.fspath(script), main))


def _execute(source: str | bytes, name: str, main: types.ModuleType) -> None:
    exec(compile(source, name, "exec", dont_inherit=True), vars(main))


def _reporting(execute: Callable[[], object]) -> Callable[[], None]:
    """Return a function that executes and reports an exception as the interpreter does, without our frames."""
    ours = {__file__, runpy.__file__, "<frozen runpy>"}

    def run() -> None:
        global _status
        try:
            execute()
        except SystemExit as error:
            _status = error.code if isinstance(error.code, int) else int(error.code is not None)
            raise
        except Exception as error:
            traceback = error.__traceback__
            while traceback is not None and traceback.tb_frame.f_code.co_filename in ours:
                traceback = traceback.tb_next
            sys.last_type, sys.last_value, sys.last_traceback = type(error), error, traceback  # as the interpreter does
            sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        else:
            _status = 0
            return
        _status = 1
        raise SystemExit(1)

    return run


def _exit_now() -> None:
    """Exit without freeing 200 MB of modules one by one, which takes longer than most jobs."""
    if _status is not None:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_status & 0xFF)
