"""Progress bars stay intact while lines are printed above them; logging does not import their libraries."""

from __future__ import annotations

import io
import sys

import pytest
from loguru import logger


class Terminal(io.StringIO):
    """A stream whose `isatty` returns True."""

    def isatty(self):
        return True


def test_a_line_is_not_glued_to_a_bar_of_tqdm(start, monkeypatch):
    """Tqdm's bar is cleared, the line is printed, and the bar is drawn again below it."""
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    start(format="{message}", colorize=False)
    with tqdm.tqdm(total=4, file=terminal, ncols=40, mininterval=0) as bar:
        bar.update(1)
        logger.info("a line")
        bar.update(1)
    text = terminal.getvalue()
    before, after = text.split("a line\n")
    assert before.endswith("\r")
    assert set(before.rsplit("\r", 2)[1]) == {" "}
    assert after.lstrip("\r").startswith(" 25%")


def test_without_a_bar_of_tqdm_nothing_is_cleared(start, monkeypatch):
    """Tqdm is imported, but has no bar now."""
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    start(format="{message}", colorize=False)
    logger.info("a line")
    assert terminal.getvalue() == "a line\n"


def test_a_line_is_printed_above_a_bar_of_rich(start, monkeypatch):
    """Rich replaces stderr, so stderr is looked up for each line."""
    from rich.console import Console
    from rich.progress import Progress

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    start(format="{message}", colorize=False)
    console = Console(file=terminal, force_terminal=True, width=60, legacy_windows=False)
    with Progress(console=console, auto_refresh=False) as progress:
        task = progress.add_task("train", total=4)
        progress.update(task, advance=1, refresh=True)
        logger.info("a line")
        progress.update(task, advance=1, refresh=True)
    # The terminal's final content: "\r\x1b[2K" clears the current line.
    lines = [line.rpartition("\r\x1b[2K")[2] for line in terminal.getvalue().split("\n")]
    assert "a line" in lines
    assert [line.startswith("train") for line in lines] == [False, True, False]


def test_neither_is_loaded_by_logging(run_python, script):
    """Importing tqdm or rich takes seconds on slow disks."""
    body = 'logger.info("hello")\nprint([name for name in ("tqdm", "rich", "orjson", "mlflow") if name in sys.modules])'
    assert run_python(script(body, intercept=True)) == (0, "[]\n", "INFO|hello\n")
