"""Bring the test process into a known state, independent of the environment, terminal or shell that started it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

TEST = "TEST_THAT_STARTED_THIS"
"""Environment variable with the id of a test; all processes that the test starts inherit it."""
_SESSION = "TESTS_THAT_STARTED_THIS"
_KEPT = {
    "UPDATE_GOLDEN",
    "HOME",
    "JAVA_HOME",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "PYTHONPATH",
    "PYTHONPYCACHEPREFIX",
    "SHELL",
    "TMPDIR",
    "TZ",
    "USER",
    "FORK_SERVERS",
    "FRESH_PROCESSES",
    "KILLS",
    "MEETINGS",
    _SESSION,
}
_KEPT_PREFIXES = ("COVERAGE_", "COV_CORE_", "HYPOTHESIS_", "OMP_", "OPENBLAS_", "PIP_", "PYENV_", "PYTEST_", "SSL_")
_SET = {
    "LANG": "C.UTF-8",
    "TERM": "xterm-256color",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "3600",  # otherwise jobs of over 10 s on a busy machine log them
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray gives its workers a niceness of 15, and a busy machine hardly ever runs those
}
_MLFLOW_GLOBALS = (
    ("mlflow.tracking.fluent", "_active_experiment_id"),
    ("mlflow.tracking._tracking_service.utils", "_tracking_uri"),
    ("mlflow.tracking._model_registry.utils", "_registry_uri"),
)
_DEFAULT = ("SIGHUP", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT")


def enter() -> None:
    """Remove the variables that a test could depend on, for this process and its children."""
    for name in set(os.environ) - _KEPT:
        if not name.startswith(_KEPT_PREFIXES):
            del os.environ[name]
    os.environ.update(_SET)
    os.umask(0o022)


def reset_signals() -> None:
    """Restore the default handling of signals; a shell, nohup or a scheduler may ignore or block some of them."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in _DEFAULT:
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def forget_stores() -> None:
    """Remove our variables and MLflow's, and reset MLflow's global values, which a test may have set."""
    for name in list(os.environ):
        if name.startswith(("AUTOGEN_TEAM_", "MLFLOW_")) and name not in _SET:
            del os.environ[name]
    for module, value in _MLFLOW_GLOBALS:
        if module in sys.modules:
            setattr(sys.modules[module], value, None)


@contextmanager
def default_signals() -> Iterator[None]:
    """Restore the default handling of signals inside the block."""
    before = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, ("SIGINT", *_DEFAULT))}
    reset_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def reaper() -> Iterator[None]:
    """At the end of the block, kill the processes that tests have left running."""
    os.environ[_SESSION] = session = f"{os.getpid()}-{os.urandom(4).hex()}"
    try:
        yield
    finally:
        _kill(f"{_SESSION}={session}")


def end_processes(test: str) -> None:
    """Kill the processes that a test has started, and their children."""
    _kill(f"{TEST}={test}")


def _kill(variable: str) -> None:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and variable.encode() in _environment(process.pid):
                process.kill()


def _environment(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
