"""JSON lines: one flat, strictly valid object per record, for any values."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger

from autogen_team._logs import jsonl, loguru_internals
from autogen_team._process import run_events
from autogen_team._redact import Redactor

SECRET = "correct-" + "horse-" * 3


class Unshowable:
    """An object whose repr fails."""

    def __repr__(self):
        raise RuntimeError("no repr")


class Odd:
    """An object whose repr cannot be encoded in UTF-8."""

    def __repr__(self):
        return "odd \ud800"


@dataclass
class Point:
    """A dataclass, which orjson would serialize as an object."""

    x: int = 1


class Stage(StrEnum):
    """A subclass of str."""

    TRAIN = "train"


def circle():
    """Return a list that contains itself."""
    found = []
    found.append(found)
    return found


@pytest.fixture
def log(start, tmp_path, strict):
    """Return a function that logs and returns the line as a parsed object."""
    path = tmp_path / "job.log"
    start(sink=str(path), serialize=True)

    def log(message="message", **extra):
        before = len(path.read_bytes().splitlines())
        logger.bind(**extra).info(message)
        lines = path.read_bytes().splitlines()
        assert len(lines) == before + 1
        return strict(lines[-1])

    return log


def test_a_line_has_the_documented_fields(log):
    """A line has exactly these fields, in this order."""
    line = log("epoch 1")
    fields = "time level message logger module function line process thread exception"
    assert list(line) == fields.split() == [name for name in line if name in jsonl.RESERVED]
    assert (line["level"], line["message"], line["thread"]) == ("INFO", "epoch 1", "MainThread")
    assert (line["module"], line["function"], line["exception"]) == ("test_jsonl", "log", None)


def test_the_documentation_names_every_field():
    """`docs/log-schema.md` is checked against the code."""
    text = (Path(__file__).parents[3] / "docs" / "log-schema.md").read_text()
    names = [*jsonl.RESERVED, "run_id", "run_name", "experiment", "trace_id", "span_id", "rank"]
    assert [name for name in names if f"| `{name}` |" not in text] == []


def test_the_time_is_iso_8601_in_utc(log):
    """The time is that of the call, with microseconds and a Z."""
    before = datetime.now(UTC)
    text = log()["time"]
    assert text.endswith("Z")
    assert len(text) == len("2026-11-23T04:13:59.123456Z")
    assert before <= datetime.fromisoformat(text) <= datetime.now(UTC)


@pytest.mark.parametrize("offset", [0, 5.5, -8])
def test_the_time_is_right_in_any_zone_and_second(offset):
    """The cached text of a second is never used for another second."""
    lines = jsonl.JsonLines(None)
    zone = timezone(timedelta(hours=offset))
    for moment in (0.999999, 1.0, 1.5, 86_401.5, 1.5, 0.25):
        time = datetime.fromtimestamp(moment, zone)
        assert datetime.fromisoformat(lines._time(time)) == time


def test_bound_values_are_fields(log):
    """Bound values are fields of the line, not of a nested object."""
    line = log("{user}", user="ada", step=3, loss=0.5, done=True, none=None, tags=["a", 1], nested={"k": {"j": 1}})
    assert (line["user"], line["step"], line["loss"], line["done"], line["none"]) == ("ada", 3, 0.5, True, None)
    assert (line["tags"], line["nested"]) == (["a", 1], {"k": {"j": 1}})


def test_keyword_arguments_are_fields(start, tmp_path, strict):
    """Keyword arguments are fields, as in loguru's `extra`."""
    start(sink=str(tmp_path / "job.log"), serialize=True)
    logger.info("hello {user}", user="ada")
    line = strict((tmp_path / "job.log").read_text())
    assert (line["message"], line["user"]) == ("hello ada", "ada")


def test_a_bound_value_cannot_replace_our_fields(log):
    """A value with the name of one of our fields is stored under another name."""
    line = log(level="high", extra_level="higher", time=1)
    assert (line["level"], line["extra_level"], line["extra_extra_level"]) == ("INFO", "higher", "high")
    assert line["extra_time"] == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (math.nan, None),
        (math.inf, None),
        ([1.0, -math.inf], [1.0, None]),
        ({2}, "{2}"),
        (Point(), "Point(x=1)"),
        (b"raw", "b'raw'"),
        (1 + 2j, "(1+2j)"),
        (2**70, str(2**70)),
        ({1: 2, (3, 4): 5}, {"1": 2, "(3, 4)": 5}),
        ("lone \ud800", "lone \\ud800"),
        ({"\udfff": 1}, {"\\udfff": 1}),
        (Odd(), "odd \\ud800"),
        (Unshowable(), "<Unshowable whose repr fails>"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        (Stage.TRAIN, "train"),
        (ValueError("wrong"), "ValueError('wrong')"),
        ((1, 2), [1, 2]),
        (True, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_json_lacks_becomes_null_or_its_repr(log, value, shown):
    """NaN and infinities become null, other values their repr."""
    assert log(value=value)["value"] == shown


def test_a_recursive_value_is_cut(log):
    """A structure that contains itself is cut at some depth."""
    line = log(value=circle(), other="fine")
    assert isinstance(line["value"], list)
    assert line["other"] == "fine"


def test_numbers_of_numpy_are_numbers(log):
    """NumPy scalars are written as numbers."""
    numpy = pytest.importorskip("numpy")
    line = log(double=numpy.float64(0.5), single=numpy.float32(0.5), count=numpy.int64(3), nan=numpy.float64("nan"))
    assert (line["double"], line["single"], line["count"], line["nan"]) == (0.5, 0.5, 3, None)
    assert log(array=numpy.zeros(3))["array"] == "array([0., 0., 0.])"


def test_a_value_that_json_lacks_changes_no_other_value(log):
    """A field has the same type in all lines, for any other values in the line."""
    numpy = pytest.importorskip("numpy")
    fields = {"count": numpy.int64(3), "when": datetime(2026, 1, 1, tzinfo=UTC)}

    alone, beside = log(**fields), log(**fields, scores={0: 0.5})
    assert {name: beside[name] for name in fields} == {name: alone[name] for name in fields}
    assert beside["count"] == 3
    assert beside["scores"] == {"0": 0.5}


def test_a_value_that_changes_meanwhile_is_not_an_error(log):
    """A dictionary may change while it is serialized."""

    class Growing(dict):
        def items(self):
            raise RuntimeError("dictionary changed size during iteration")

    assert log(value={"a": Growing(), "b": {1: 2}})["value"]["b"] == {"1": 2}


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.builds(object)
    | st.builds(Unshowable)
    | st.datetimes(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(codec=None)) | st.integers() | st.none(), inner)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers())
    ),
    max_leaves=10,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    message=st.text(st.characters(codec=None)),
    extra=st.dictionaries(st.text(), values, max_size=4),
    redact=st.booleans(),
)
def test_every_record_is_one_strictly_valid_line(strict, message, extra, redact):
    """For any message and any bound values, the line is valid, and no value is dropped."""
    record = loguru_internals.make_record("INFO", message, name="name")
    record["extra"] = extra
    line = jsonl.JsonLines(Redactor({"API_TOKEN": SECRET}) if redact else None)(record, {"run_id": "1"}, "")
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    found = strict(line)
    assert len(found) == len(jsonl.RESERVED) + len({*extra, "run_id"})
    if not redact:
        assert found["message"] == message.encode("utf-8", "backslashreplace").decode()


def test_an_exception_is_text_with_its_traceback(start, tmp_path, strict):
    """The traceback is one field, without colours and without a final newline."""
    start(sink=str(tmp_path / "job.log"), serialize=True)
    try:
        raise ValueError("bad shape")
    except ValueError:
        logger.exception("failed")
    line = strict((tmp_path / "job.log").read_text())
    assert (line["level"], line["message"]) == ("ERROR", "failed")
    assert line["exception"].startswith("Traceback (most recent call last):")
    assert line["exception"].endswith("ValueError: bad shape")


def test_each_thread_has_its_name(start, tmp_path, strict):
    """The process is identified by its id, the thread by its name."""
    start(sink=str(tmp_path / "job.log"), serialize=True)
    thread = threading.Thread(target=logger.info, args=("hello",), name="loader")
    thread.start()
    thread.join()
    assert strict((tmp_path / "job.log").read_text())["thread"] == "loader"


def test_a_line_on_the_console_is_the_same(start, capsys, strict):
    """`serialize` works for every sink; raw messages are lines too."""
    start(sink="stdout", serialize=True)
    logger.info("one\nline")
    logger.opt(raw=True).info("raw")
    one, raw = capsys.readouterr().out.splitlines()
    assert strict(one)["message"] == "one\nline"
    assert strict(raw)["message"] == "raw"


def test_the_run_and_the_span_are_fields(log):
    """Each line has its run and span, unless the job has bound another value."""
    facts = {"run_id": "1", "run_name": "train", "experiment": "digits", "trace_id": "tr-1", "span_id": "2"}
    restore = run_events.set_source(lambda: facts)
    try:
        line = log()
        assert {name: line[name] for name in facts} == facts
        assert log(run_id="mine")["run_id"] == "mine"
    finally:
        restore()
    assert "run_id" not in log()


def test_a_source_of_facts_that_fails_loses_no_line(log):
    """If a source of facts fails, the line has no facts."""

    def fail():
        raise RuntimeError("no facts")

    restore = run_events.set_source(fail)
    try:
        assert log()["message"] == "message"
    finally:
        restore()


def test_the_rank_is_a_field(start, tmp_path, strict, monkeypatch):
    """The rank is a field under torchrun, also inside a run."""
    monkeypatch.setenv("RANK", "2")
    start(sink=str(tmp_path / "job.log"), serialize=True)
    restore = run_events.set_source(lambda: {"run_id": "1"})
    try:
        logger.info("hello")
    finally:
        restore()
    line = strict((tmp_path / "job.log").read_text())
    assert (line["rank"], line["run_id"]) == ("2", "1")
