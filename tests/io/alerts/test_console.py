"""The line on the console is written in any state of the console."""

import io
import os
import sys
from pathlib import Path

import pytest

from autogen_team._alerts.console import write_line

WRITE = "from autogen_team._alerts.console import write_line\n"
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def test_the_line_goes_to_stdout(capsys):
    """A line with its newline is written to stdout only."""
    write_line("[test] done: it is")
    assert capsys.readouterr() == ("[test] done: it is\n", "")


def test_under_the_command_the_line_goes_to_stderr(capsys, monkeypatch):
    """Under `autogen-team`, stdout belongs to the output of the job."""
    monkeypatch.setenv("AUTOGEN_TEAM_SUPERVISED", "1")
    write_line("[test] done: it is")
    assert capsys.readouterr() == ("", "[test] done: it is\n")


def test_lines_of_the_job_stay_in_order(run_script):
    """Buffered output of the job is printed before the alert's line."""
    script = run_script(WRITE + "print('before', end=' '); write_line('line'); print('after')")
    assert (script.stdout, script.stderr) == ("before line\nafter\n", "")


def test_an_ascii_console_gets_escapes(run_script):
    """A character that the encoding lacks is escaped."""
    script = run_script(WRITE + "write_line('rocket \\U0001f680')", PYTHONIOENCODING="ascii")
    assert (script.stdout, script.stderr) == ("rocket \\U0001f680\n", "")


def test_a_replaced_ascii_stream_gets_escapes(monkeypatch):
    """Escaping also works for a stream that replaces stdout."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write_line("rocket 🚀")
    assert raw.getvalue() == b"rocket \\U0001f680" + os.linesep.encode()


@needs_dev_full
def test_a_full_stdout_changes_neither_the_line_nor_the_exit_status(run_script):
    """The line goes to stderr, and no buffered rest fails at exit."""
    with Path("/dev/full").open("w") as full:
        script = run_script(WRITE + "write_line('line')", stdout=full)
    assert (script.returncode, script.stderr) == (0, "line\n")


@needs_dev_full
def test_a_stdout_that_is_full_of_the_jobs_own_lines_does_not_matter(run_script):
    """If the job's buffer cannot be flushed, the line still goes to stderr."""
    code = "import os, sys\nprint('stuck')\nwrite_line('line')\nos._exit(0)"
    with Path("/dev/full").open("w") as full:
        script = run_script(WRITE + code, stdout=full)
    assert (script.returncode, script.stderr) == (0, "line\n")


def test_a_closed_pipe_does_not_matter(run_script):
    """If the reader of the pipe has exited, the line goes to stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        script = run_script(WRITE + "write_line('line')", stdout=writer)
    finally:
        os.close(writer)
    assert (script.returncode, script.stderr) == (0, "line\n")


@pytest.mark.parametrize("state", ["sys.stdout = None", "sys.stdout.close()"])
def test_no_stdout_at_all_does_not_matter(run_script, state):
    """A process without stdout writes to stderr."""
    script = run_script(f"import sys\n{WRITE}{state}\nwrite_line('line')")
    assert script.stderr == "line\n"


def test_no_console_at_all_does_not_matter(monkeypatch):
    """A process without stdout and stderr continues."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    write_line("line")
