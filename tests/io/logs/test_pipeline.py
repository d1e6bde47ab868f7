"""Sinks, levels, formats and colours; rejected settings; several services; the process after `stop`."""

from __future__ import annotations

import contextlib
import io
import re
import sys

import pytest
from loguru import logger

from autogen_team.errors import ConfigurationError


class Terminal(io.StringIO):
    """A stream whose `isatty` returns True."""

    def isatty(self):
        return True


def test_a_line_shows_time_level_source_and_message(start, capsys):
    """The user story asks for timestamp, level and source."""
    start(format="{time:YYYY-MM-DD HH:mm:ss.SSS} | {level: <8} | {name}:{function}:{line} - {message}")
    logger.info("epoch {}", 1)
    line = capsys.readouterr().err
    head, tail = line[:23], line[23:]
    assert head[4] == head[7] == "-"
    assert tail.startswith(" | INFO     | ")
    assert ":test_a_line_shows_time_level_source_and_message:" in tail
    assert tail.endswith(" - epoch 1\n")


@pytest.mark.parametrize(
    ("sink", "stream"), [("stderr", "err"), ("STDERR", "err"), ("Stdout", "out"), ("stdout", "out")]
)
def test_streams_are_named_in_any_case(start, capsys, sink, stream):
    """No file named STDERR is created."""
    start(sink=sink)
    logger.info("here")
    captured = capsys.readouterr()
    assert getattr(captured, stream) == "INFO|here\n"
    assert captured.out + captured.err == "INFO|here\n"


def test_a_stream_is_looked_up_for_each_line(start):
    """A redirection that begins after the start receives the lines."""
    start()
    with contextlib.redirect_stderr(io.StringIO()) as redirected:
        logger.info("inside")
    assert redirected.getvalue() == "INFO|inside\n"


def test_a_process_without_stderr_logs_nothing(start, monkeypatch):
    """Under pythonw, sys.stderr is None."""
    start()
    monkeypatch.setattr(sys, "stderr", None)
    logger.info("nobody sees it")


def test_a_file_gets_its_folders_and_whole_lines(start, tmp_path):
    """Folders are created, and the line is on disk when the call returns."""
    path = tmp_path / "a" / "b" / "job.log"
    start(sink=str(path))
    logger.info("first")
    assert path.read_text() == "INFO|first\n"


def test_the_tilde_is_the_home_folder(start, tmp_path, monkeypatch):
    """No folder named ~ is created."""
    monkeypatch.setenv("HOME", str(tmp_path))
    start(sink="~/logs/job.log")
    logger.info("at home")
    assert "at home" in (tmp_path / "logs" / "job.log").read_text()


def test_a_file_is_continued(start, tmp_path):
    """A second start appends to the file of the first."""
    path = tmp_path / "job.log"
    start(sink=str(path))()
    for text in ("one", "two"):
        stop = start(sink=str(path))
        logger.info(text)
        stop()
    assert path.read_text() == "INFO|one\nINFO|two\n"


@pytest.mark.parametrize("level", ["warning", "WARNING", " Warning ", "30"])
def test_levels_are_accepted_in_any_case_and_by_number(start, capsys, level):
    """Lines below the level are not shown."""
    start(level=level)
    logger.info("no")
    logger.warning("yes")
    assert capsys.readouterr().err == "WARNING|yes\n"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"level": "WARN"}, ["'WARN'", "did you mean WARNING"]),
        ({"level": "loud"}, ["'loud'", "CRITICAL"]),
        ({"format": "{nope} {message}"}, ["{nope} {message}", "'nope'", "thread"]),
        ({"format": "{level: <x}"}, ["{level: <x}"]),
        ({"format": "{time:SSSSSSSS}"}, ["SSSSSSSS", "six"]),
        ({"format": "{message"}, ["{message"]),
        ({"format": "<gren>{message}</gren>"}, ["gren", "color"]),
        ({"format": "<green>{message}"}, ["green", "closing"]),
        ({"format": "  "}, ["empty"]),
        ({"sink": ""}, ["empty", "stderr"]),
        ({"sink": "/"}, ["folder"]),
        ({"sink": "new/"}, ["folder", "new/job.log"]),
        ({"sink": "/proc/job.log"}, ["/proc/job.log", "cannot be written"]),
        ({"sink": "job-{bad}.log"}, ["{bad}", "{time}"]),
        ({"sink": "job.log", "rotation": "often"}, ["'job.log'", "often"]),
        ({"sink": "job.log", "retention": "little"}, ["little"]),
        ({"sink": "job.log", "compression": "rar"}, ["rar"]),
        ({"sink": "stdout", "rotation": "1 MB"}, ["stdout", "rotation='1 MB'"]),
    ],
    ids=str,
)
def test_an_invalid_setting_is_refused_by_name(start, fields, words):
    """The error names the value and the remedy; nothing else has changed, as a fixture checks."""
    with pytest.raises(ConfigurationError) as caught:
        start(**fields)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_refused_start_keeps_the_one_before(start, capsys):
    """The earlier sink continues."""
    start()
    with pytest.raises(ConfigurationError):
        start(level="loud")
    logger.info("still here")
    assert capsys.readouterr().err == "INFO|still here\n"


def test_a_file_on_a_file_is_refused(start, tmp_path):
    """A file cannot be the folder of the log."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        start(sink=str(tmp_path / "file" / "job.log"))


def test_handlers_of_the_job_continue(start, capsys):
    """A handler of the job gets every line before, during and after the service."""
    lines = []
    mine = logger.add(lines.append, format="{message}")
    try:
        logger.info("before")
        stop = start()
        logger.info("during")
        stop()
        logger.info("after")
    finally:
        logger.remove(mine)
    assert lines == ["before\n", "during\n", "after\n"]


def test_the_default_handler_is_silenced_and_restored(run_python, script):
    """No line is printed twice, and after `stop` loguru's default handler prints again."""
    code = 'logger.info("during")\nlogger.debug("below")\nstop()\nlogger.debug("after")'
    status, _, err = run_python(script(code))
    assert status == 0
    during, after = err.splitlines()
    assert during == "INFO|during"
    assert after.endswith("__main__:main:11 - after")


def test_a_script_may_remove_the_default_handler(run_python, script):
    """Many scripts begin with `logger.remove(0)`."""
    status, _, err = run_python(script('logger.remove(0)\nlogger.info("on")\nstop()\nlogger.info("off")'))
    assert (status, err) == (0, "INFO|on\n")


REMOVED = "the job removed loguru's handlers (logger.remove()): "


def test_a_script_that_removes_all_handlers_has_the_console_to_itself(run_python, script):
    """Many scripts begin with `logger.remove()`; one warning says what is lost on the console."""
    body = """
for _ in range(2):
    logger.remove()
    logger.add(sys.stderr, format="mine {message}")
logger.info("on")
stop()
"""
    told = f"{REMOVED}stderr shows what the job's own handlers write, secrets unmasked\n"
    assert run_python(script(body)) == (0, "", told + "mine on\n")


def test_a_file_gets_its_lines_after_a_script_removes_all_handlers(run_python, script, tmp_path):
    """The settings ask for the file; neither `remove` nor `configure` removes its handler."""
    path = tmp_path / "job.log"
    body = """
logger.remove()
logger.info("one")
logger.configure(handlers=[{"sink": sys.stdout, "format": "mine {message}"}])
logger.info("two")
stop()
logger.info("after")
"""
    status, out, err = run_python(script(body, sink=str(path)))
    assert (status, out, err) == (0, "mine two\nmine after\n", f"{REMOVED}{path} still gets each line\n")
    assert path.read_text() == "INFO|one\nINFO|two\n"


def test_the_log_of_a_run_continues_after_a_script_removes_all_handlers(no_handlers, start, open_run):
    """The run's log continues even if the console now belongs to the job."""
    start(run_log=True)
    run = open_run()
    logger.remove()
    logger.info("kept")
    run.end()
    assert run.log == "INFO|kept\n"


def test_a_handler_can_be_removed_by_its_number(start, capsys):
    """A script that passes the number of our handler removes it."""
    start()
    logger.remove(max(logger._core.handlers))
    logger.info("gone")
    assert capsys.readouterr().err == ""


def test_libraries_warn_on_a_console_without_handlers(run_python, script):
    """Without a console handler, warnings are printed as without any logging configuration."""
    body = """
import logging
logger.remove()
logging.getLogger("library").warning("shown")
logging.getLogger("library").info("not shown")
"""
    status, _, err = run_python(script(body, intercept=True))
    assert (status, err.splitlines()[1:]) == (0, ["shown"])


def test_stopping_twice_does_nothing(start):
    """The returned function is idempotent."""
    stop = start()
    stop()
    stop()


def test_stop_closes_the_file(start, tmp_path):
    """What is logged after the stop is not in the file."""
    path = tmp_path / "job.log"
    stop = start(sink=str(path))
    stop()
    with contextlib.redirect_stderr(io.StringIO()):
        logger.info("later")
    assert path.read_text() == ""


def test_two_destinations_both_get_the_lines(start, capsys, tmp_path):
    """A context inside another one has its own destination."""
    start(sink=str(tmp_path / "job.log"))
    start(sink="stderr")
    logger.info("both")
    assert (tmp_path / "job.log").read_text() == capsys.readouterr().err == "INFO|both\n"


def test_one_destination_belongs_to_the_latest_start(start, capsys):
    """With two starts on one destination, no line is doubled, and after `stop` the earlier one continues."""
    start(format="outer {message}")
    stop = start(format="inner {message}")
    logger.info("1")
    stop()
    logger.info("2")
    assert capsys.readouterr().err == "inner 1\nouter 2\n"


def test_the_earlier_of_two_may_stop_first(start, capsys):
    """The order of stops does not matter."""
    first = start(format="outer {message}")
    start(format="inner {message}")
    first()
    logger.info("1")
    assert capsys.readouterr().err == "inner 1\n"


def test_a_file_is_one_destination_under_any_name(start, tmp_path, monkeypatch):
    """A relative path and a link to the same file are one destination."""
    monkeypatch.chdir(tmp_path)
    start(sink="job.log")
    (tmp_path / "link.log").symlink_to("job.log")
    start(sink=str(tmp_path / "link.log"))
    logger.info("once")
    assert (tmp_path / "job.log").read_text() == "INFO|once\n"


def test_there_is_colour_on_a_terminal(start, monkeypatch):
    """On a terminal the level is coloured."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    start(format="<green>{line}</green> <level>{message}</level>")
    logger.warning("hot")
    assert re.fullmatch(r"\x1b\[32m\d+\x1b\[0m \x1b\[33m\x1b\[1mhot\x1b\[0m\n", terminal.getvalue())


@pytest.mark.parametrize(
    ("fields", "variables", "is_coloured"),
    [
        ({}, {}, False),
        ({}, {"FORCE_COLOR": "1"}, True),
        ({"colorize": False}, {"FORCE_COLOR": "1"}, False),
        ({}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"serialize": True}, {"FORCE_COLOR": "1"}, False),
        ({"sink": "job.log"}, {"FORCE_COLOR": "1"}, False),
    ],
    ids=str,
)
def test_colour_is_for_terminals_unless_asked(start, capsys, monkeypatch, tmp_path, fields, variables, is_coloured):
    """FORCE_COLOR and NO_COLOR are respected; files and JSON never have colours."""
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    start(format="<green>{message}</green>", **fields)
    logger.info("plain")
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("traceback")
    text = (tmp_path / "job.log").read_text() if "sink" in fields else capsys.readouterr().err
    assert "plain" in text
    assert ("\x1b[" in text) == is_coloured


def test_no_color_wins_on_a_terminal(start, monkeypatch):
    """A terminal gets plain text if the user asks for it."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    start(format="<green>{message}</green>")
    logger.info("plain")
    assert terminal.getvalue() == "plain\n"


def test_a_redirected_terminal_gets_no_colour(start, monkeypatch):
    """Colour is decided again for each stream."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    start(format="<green>{message}</green>")
    with contextlib.redirect_stderr(io.StringIO()) as redirected:
        logger.info("plain")
        try:
            raise ValueError("wrong")
        except ValueError:
            logger.exception("traceback")
    assert "\x1b" not in redirected.getvalue()
    assert "ValueError" in redirected.getvalue()


@pytest.mark.parametrize(("rank", "seen"), [("0", "info,warning"), ("1", "warning"), ("7", "warning")])
def test_other_ranks_only_warn_on_the_console(start, capsys, monkeypatch, rank, seen):
    """Under torchrun the console belongs to rank 0."""
    monkeypatch.setenv("RANK", rank)
    start(format="{message}")
    logger.info("info")
    logger.warning("warning")
    assert capsys.readouterr().err == seen.replace(",", "\n") + "\n"


@pytest.mark.parametrize(("rank", "size"), [("captain", "7"), ("1", "1")])
def test_a_process_that_is_not_one_of_many_ranks_logs_on_the_console(start, capsys, monkeypatch, rank, size):
    """RANK without several ranks does not silence the console."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    start(format="{message}{extra[rank]}")
    logger.info("info")
    assert capsys.readouterr().err == "info\n"


def test_other_ranks_log_everything_to_files(start, monkeypatch, tmp_path):
    """Only the console is restricted."""
    monkeypatch.setenv("RANK", "3")
    start(sink=str(tmp_path / "job.log"), format="{extra[rank]} {message}")
    logger.info("all")
    assert (tmp_path / "job.log").read_text() == "3 all\n"


def test_a_raw_message_is_written_as_it_is(start, capsys):
    """`opt(raw=True)` adds neither format nor newline."""
    start()
    logger.opt(raw=True).info("50 %\r")
    logger.opt(raw=True).opt(depth=0).info("line")
    assert capsys.readouterr().err == "50 %\rINFO|line\n"


def test_values_of_variables_are_shown_only_if_asked(start, capsys):
    """`diagnose` has loguru's meaning; without it, no values are shown."""
    for diagnose in (False, True):
        stop = start(diagnose=diagnose)
        try:
            value = "a value of the " + "job"
            raise ValueError(len(value))
        except ValueError:
            logger.exception("failed")
        stop()
        assert ("'a value of the job'" in capsys.readouterr().err) == diagnose


def test_a_caught_exception_is_logged_by_the_decorator(start, capsys):
    """`logger.catch` logs as in loguru."""
    start()

    @logger.catch
    def fail():
        raise ValueError("wrong")

    fail()
    err = capsys.readouterr().err
    assert "ERROR|An error has been caught in function" in err
    assert "ValueError: wrong" in err
