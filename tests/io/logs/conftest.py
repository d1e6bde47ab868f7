"""Fixtures for tests of the logging engine: a pipeline that is always stopped, and a check for leftovers."""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings
from pathlib import Path

import pytest
from loguru import logger

from autogen_team._logs import pipeline
from autogen_team._process import run_events
from autogen_team.io.services import LoggerService

FORMAT = (
    "<green>{time:YYYY-MM-DD HH:mm:ss.SSS}</green> | <level>{level: <8}</level> | "
    "<cyan>{name}</cyan>:<cyan>{function}</cyan>:<cyan>{line}</cyan> - <level>{message}</level>"
)
PATIENCE = 30.0
"""Seconds that a test waits before it fails."""
PLAIN = {
    "sink": "stderr",
    "level": "INFO",
    "format": "{level}|{message}",
    "colorize": True,
    "serialize": False,
    "backtrace": True,
    "diagnose": False,
    "catch": True,
    "rotation": None,
    "retention": None,
    "compression": None,
    "intercept": False,
    "redact": True,
    "uncaught": False,
    "run_log": False,
}
"""Settings of a pipeline that adds little to loguru."""


@pytest.fixture(scope="session")
def processes_are_fresh():
    """Start new interpreters: logging does not import MLflow, and its output names the caller's frames."""
    return True


def _state():
    root = logging.getLogger()
    return {
        "loguru": list(logger._core.handlers.items()),
        "levels": [handler.levelno for handler in logger._core.handlers.values()],
        "least": logger._core.min_level,
        "methods": [
            getattr(type(logger), name) for name in ("info", "exception", "log", "opt", "_log", "remove", "__reduce__")
        ],
        "root": list(root.handlers),
        "filter": (logging.Logger.filter, "filter" in vars(logging.Logger)),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning),
        "listeners": run_events._listeners,
        "started": list(pipeline._started),
    }


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fail a test that leaves a handler, a hook or a patch."""
    before = _state()
    yield
    assert _state() == before


@pytest.fixture
def no_handlers(nothing_left_behind):
    """Hide loguru's handlers during the test, so that it can remove all handlers."""
    core = logger._core
    before = core.handlers, core.min_level
    core.handlers, core.min_level = {}, 100
    yield
    core.handlers, core.min_level = before


@pytest.fixture
def start(tmp_path):
    """Return a function that starts logging with the given fields; after the test, pipelines stop, latest first."""
    undo = []

    def start(**fields):
        stop = pipeline.start(LoggerService(**{**PLAIN, **fields}))
        undo.append(stop)
        return stop

    yield start
    for stop in reversed(undo):
        stop()


def _unique(pairs):
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names)), f"duplicate names in {names}"
    return dict(pairs)


def _no_constant(text):
    raise AssertionError(f"{text} is not valid JSON")


@pytest.fixture
def strict():
    """Return a parser that accepts only one JSON object without duplicate names, NaN or Infinity."""

    def parse(line):
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        assert isinstance(found, dict)
        return found

    return parse


@pytest.fixture
def script(tmp_path):
    """Return a function that writes a script that starts logging with the given fields, and returns its path."""

    def write(body, **fields):
        settings = {**PLAIN, **fields}
        lines = [
            "import os, sys",
            "from pathlib import Path",
            "from loguru import logger",
            "from autogen_team._process import run_events",
            "from autogen_team._logs import pipeline; from autogen_team.io.services import LoggerService",
            f"SERVICE = LoggerService(**{settings!r})",
            "def main():",
            *("    " + line for line in body.strip("\n").splitlines()),
            "if __name__ == '__main__':",
            "    stop = pipeline.start(SERVICE)",
            "    main()",
        ]
        path = tmp_path / f"script{len(list(tmp_path.iterdir()))}.py"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


class FakeRun:
    """A run with an artifact folder that records the files attached to it."""

    def __init__(self, folder: Path, run_id: str, state: Path):
        self.folder = folder
        self.gate = threading.Event()
        self.gate.set()
        self.failure = None
        self.brought = []
        self.threads = set()
        self.job_run = run_events.Run(
            run_id, "train", "digits", None, self.attach, log_folder=run_events.log_folder(state, run_id)
        )

    def attach(self, path, folder):
        """Copy the file into the artifact folder, as a store would."""
        self.threads.add(threading.current_thread())
        assert self.gate.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure
        content = path.read_bytes()
        self.brought.append((f"{folder}/{path.name}", len(content)))
        target = self.folder / folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    @property
    def log(self):
        """The text of all logs in the run's artifacts."""
        return b"".join(path.read_bytes() for path in sorted(self.folder.glob("logs/*.log"))).decode()

    def end(self, status="FINISHED", reason=None, exception=None):
        """Publish the end of the run to the subscribers, as tracking does."""
        end = run_events.End(status, reason, exception, 1.0)
        run_events.run_ending(self.job_run, end)
        run_events.run_ended(self.job_run, end)


@pytest.fixture
def open_run(tmp_path):
    """Return a function that opens a run without a tracking store; after the test, the gates of all runs open."""
    opened = []

    def open_run(run_id="0123456789abcdef"):
        run = FakeRun(tmp_path / "artifacts" / run_id, run_id, tmp_path / "state")
        opened.append(run)
        run_events.run_started(run.job_run)
        return run

    yield open_run
    for run in opened:
        run.gate.set()
