"""Lines of text: formats, times, missing values, and protection against data."""

from __future__ import annotations

import io
import sys
from datetime import UTC, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from autogen_team._logs import loguru_internals, text
from autogen_team._process import run_events


@pytest.mark.parametrize(
    "template",
    [
        "{time} {level} {message}",
        "{time:YYYY-MM-DD HH:mm:ss.SSS}|{time:HH:mm}|{time!s}",
        "{level: <8}|{level.no}|{level.icon}|{level.name:>9}|{level!s}",
        "{name}:{function}:{line:05} {module} {file} {file.path}",
        "{process} {process.name} {thread} {thread.name} {elapsed}",
        "<green>{message}</green> \\<b> {{braces}} }}{{",
        "{extra} {extra[step]} {extra[step]:>4} {message:{extra[width]}}",
        "first\nsecond {message}",
    ],
)
def test_a_line_looks_as_loguru_makes_it(template):
    """A line equals that of loguru's own handler for the same record."""
    lines, records = [], []
    handler = logger.add(lambda it: (lines.append(str(it)), records.append(it.record)), format=template, colorize=False)
    try:
        logger.bind(step=3, width=20).info("a message")
    finally:
        logger.remove(handler)
    assert text.Template(template).plain(records[0], records[0]["extra"], "") + "\n" == lines[0]


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])))
def test_the_common_time_is_shown_as_loguru_does(moment):
    """For any times in any order, the cached text of a second is never used for another second."""
    record = loguru_internals.make_record("INFO", "", name="")
    time = type(record["time"]).combine(moment.date(), moment.timetz())
    shown = test_the_common_time_is_shown_as_loguru_does.shown
    assert shown(time) == format(time, "YYYY-MM-DD HH:mm:ss.SSS")


test_the_common_time_is_shown_as_loguru_does.shown = text.CommonTime()


def test_a_bound_value_that_is_missing_is_empty(start, capsys):
    """The format may access attributes, items and specifications of a missing value."""
    start(format="[{extra[run_id]}|{extra[loss]:.3f}|{extra[a][b].c!s:>3}] {message}")
    logger.info("hello")
    logger.bind(run_id="1", loss=0.5).info("bound")
    assert capsys.readouterr().err == "[||   ] hello\n[1|0.500|   ] bound\n"


def test_the_run_is_in_the_line_if_the_format_contains_it(start, capsys):
    """Outside a run the field is empty."""
    start(format="{extra[run_id]}|{message}")
    logger.info("outside")
    restore = run_events.set_source(lambda: {"run_id": "1"})
    try:
        logger.info("inside")
        logger.bind(run_id="mine").info("bound")
    finally:
        restore()
    assert capsys.readouterr().err == "|outside\n1|inside\nmine|bound\n"


def test_facts_do_not_reach_the_handlers_of_the_job(start):
    """Loguru's record stays as the job made it."""
    start(format="{extra[run_id]}|{message}")
    records = []
    mine = logger.add(lambda it: records.append(it.record), level="INFO")
    restore = run_events.set_source(lambda: {"run_id": "1"})
    try:
        logger.info("inside")
    finally:
        restore()
        logger.remove(mine)
    assert records[0]["extra"] == {}


def test_data_cannot_forge_a_line(start, capsys):
    """Text after a line break in the data is indented, so only real lines begin at the margin."""
    start(format="{level} {message}")
    logger.bind(user="x").info("user {}", "bob\nERROR forged\r\nERROR again")
    logger.info("next")
    assert capsys.readouterr().err == "INFO user bob\n    ERROR forged\\r\n    ERROR again\nINFO next\n"


def test_data_cannot_colour_the_terminal(start, monkeypatch):
    """Only the format's colours reach the terminal, even if colours are enabled."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    start(format="<green>{message}</green> {extra[who]}")
    logger.bind(who="\x1b[2J").info("{}", "\x1b[31mred\x07\u202eltr\u2028\x9b31m")
    try:
        raise ValueError("\x1b[31m\x1b]0;title\x07")
    except ValueError:
        logger.exception("failed")
    first, rest = terminal.getvalue().split("\n", 1)
    assert first == "\x1b[32m\\x1b[31mred\\x07\\u202eltr\\u2028\\x9b31m\x1b[0m \\x1b[2J"
    assert "\\x1b]0;title\\x07" in rest


def test_a_traceback_keeps_its_colours_on_a_terminal(start, monkeypatch):
    """Loguru's coloured source code is kept."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    start(format="{message}")
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("failed")
    assert "\x1b[31m\x1b[1mValueError\x1b[0m" in terminal.getvalue()


def test_a_message_can_have_its_own_markup(start, monkeypatch):
    """After markup with `opt(colors=True)` the surrounding colours resume; without colours, markup is removed."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    stop = start(format="<green>{message}</green>!")
    logger.opt(colors=True).info("a <red>b</red> {}", "c\x07")
    stop()
    start(format="<green>{message}</green>!", colorize=False)
    logger.opt(colors=True).info("a <red>b</red> {}", "c")
    assert terminal.getvalue() == "\x1b[32ma \x1b[31mb\x1b[0m\x1b[32m c\\x07\x1b[0m!\na b c!\n"


def test_a_level_keeps_its_colour(start, monkeypatch):
    """Levels can be changed and added at any time."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    start(format="<level>{message}</level>")
    before = logger.level("INFO").color
    logger.level("INFO", color="<red>")
    try:
        logger.info("red")
    finally:
        logger.level("INFO", color=before)
    logger.log(25, "as SUCCESS")
    logger.log(26, "without a name")
    red, _, nameless = terminal.getvalue().splitlines()
    assert red == "\x1b[31mred\x1b[0m"
    assert nameless == "without a name\x1b[0m"


def test_a_traceback_is_readable_and_indented(start, capsys):
    """A traceback cannot be mistaken for lines of the log."""
    start(format="{level} {message}")
    try:
        raise ValueError("bad\nshape")
    except ValueError:
        logger.exception("failed")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "ERROR failed"
    assert all(line.startswith("    ") or not line for line in rest)
    assert "    Traceback (most recent call last):" in rest


def test_a_lone_surrogate_is_written_escaped(start, tmp_path):
    """UTF-8 cannot encode it, and the line is not lost."""
    start(sink=str(tmp_path / "job.log"), format="{message}")
    logger.info("lone \ud800")
    assert (tmp_path / "job.log").read_text() == "lone \\ud800\n"


def test_common_characters_stay_as_they_are(start, tmp_path):
    """Tabs, accents, emoji with joiners and non-breaking spaces stay."""
    message = "tab\there é 日本 👩\u200d💻 a\xa0b"
    start(sink=str(tmp_path / "job.log"), format="{message}")
    logger.info(message)
    assert (tmp_path / "job.log").read_text() == message + "\n"


class Failing:
    """A value that cannot be formatted."""

    def __format__(self, spec):
        raise RuntimeError("cannot be shown")

    __repr__ = __str__ = lambda self: "failing"


@pytest.mark.parametrize("colour", ["0", "1"])
def test_a_value_that_fails_in_the_format_loses_no_line(start, capsys, monkeypatch, colour):
    """The line states the error, and contains the message and the traceback."""
    if colour == "1":
        monkeypatch.setenv("FORCE_COLOR", "1")
    start(format="{extra[it]} {message}")
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.bind(it=Failing()).exception("kept")
    err = capsys.readouterr().err
    assert "kept" in err
    assert "RuntimeError: cannot be shown" in err
    assert "ValueError" in err


def test_a_record_that_a_patch_has_broken_is_still_a_line(start, capsys):
    """Patches of the job may change a record in any way."""
    start(format="{module} {message}")
    logger.patch(lambda record: record.pop("module")).info("kept")
    assert "kept" in capsys.readouterr().err


@given(st.text(st.characters(codec=None)))
def test_safe_text_has_no_control_characters_and_no_line_at_the_margin(data):
    """Any text becomes indented lines without control characters."""
    safe = text.make_safe(data)
    first, *rest = safe.split("\n")
    assert all(not line or line.startswith("    ") for line in rest)
    assert not [char for char in safe if char not in "\n\t" and (ord(char) < 32 or 127 <= ord(char) < 160)]
    safe.encode()
    if data.isprintable():
        assert first == data
