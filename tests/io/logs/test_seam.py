"""Contract tests of loguru's undocumented parts in use: one test per use, to fail on a loguru that changes it."""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import pickle
from datetime import UTC, datetime
from pathlib import Path

import loguru
import pytest
from loguru import logger

from autogen_team._logs import loguru_internals

KEYS = ["elapsed", "exception", "extra", "file", "function", "level", "line", "message", "module", "name"]
KEYS += ["process", "thread", "time"]


def test_handlers_have_a_level_and_the_core_has_the_lowest():
    """Contract of `_core.handlers`, `_levelno`, `levelno`, `min_level` and `lock`."""
    core = logger._core
    handler = logger.add(lambda _: None, level=33)
    try:
        assert core.handlers[handler]._levelno == core.handlers[handler].levelno == 33
        assert core.min_level == min(one.levelno for one in core.handlers.values())
        assert loguru_internals.least_level() == core.min_level
        with core.lock:
            pass
    finally:
        logger.remove(handler)


def test_loguru_records_whether_it_has_added_its_own_handler():
    """Contract of `_defaults.LOGURU_AUTOINIT`, which decides whether handler 0 is loguru's own."""
    assert isinstance(loguru._defaults.LOGURU_AUTOINIT, bool)


def test_the_default_handler_is_silenced_and_restored(run_python):
    """The handler stays installed with an unreachable level, and `min_level` is that of the others."""
    code = """
from loguru import logger
from autogen_team._logs import loguru_internals
give_back = loguru_internals.set_default_handler_aside()
assert list(logger._core.handlers) == [0]
logger.critical("silent")
assert logger._core.min_level > 10**6
give_back()
assert logger._core.min_level == 10
logger.debug("heard")
"""
    status, _, err = run_python("-c", code)
    assert (status, err.count("\n")) == (0, 1)
    assert err.endswith("heard\n")


def test_without_a_default_handler_nothing_is_silenced(run_python):
    """With LOGURU_AUTOINIT=0, handler 0 is the job's first handler."""
    code = """
import sys
from loguru import logger
from autogen_team._logs import loguru_internals
logger.add(sys.stderr, format="{message}")
loguru_internals.set_default_handler_aside()()
loguru_internals.set_default_handler_aside()
logger.info("mine")
"""
    assert run_python("-c", code, LOGURU_AUTOINIT="0") == (0, "", "mine\n")


def test_a_handler_notes_that_a_thread_is_in_its_sink():
    """Contract of `_lock_acquired.acquired`, without which a nested message would be refused."""
    seen = []

    class Sink:
        def write(self, message):
            seen.append((loguru_internals.is_inside_a_sink(), lock.acquired))

    handler = logger.add(Sink(), level="INFO")
    try:
        lock = loguru_internals.adopt(handler)
        logger.info("hello")
    finally:
        logger.remove(handler)
    assert seen == [(True, True)]
    assert not loguru_internals.is_inside_a_sink()


def test_the_filter_is_called_before_the_lock_and_may_drop_the_record():
    """Nearly all of our lines are handled in the filter, before the lock."""
    seen = []
    handler = logger.add(
        lambda _: seen.append("sink"), filter=lambda _: seen.append(loguru_internals.is_inside_a_sink())
    )
    try:
        logger.info("hello")
    finally:
        logger.remove(handler)
    assert seen == [False]


def test_a_sink_is_handed_the_message_and_the_traceback_apart():
    """A sink gets the format, a newline and the traceback; a raw message has no format."""
    lines = []
    handler = logger.add(lines.append, format="END", colorize=False, diagnose=False)
    try:
        logger.info("hello")
        logger.opt(raw=True).info("raw")
        try:
            raise ValueError("wrong")
        except ValueError:
            logger.exception("failed")
    finally:
        logger.remove(handler)
    assert lines[:2] == ["END\n", "raw"]
    assert lines[2].startswith("END\nTraceback")
    assert lines[2].record["message"] == "failed"


def test_raw_records_are_marked_until_stop():
    """Contract of `Logger.opt` and patches: raw records are marked until `stop`."""
    records = []
    handler = logger.add(lambda it: records.append(it.record))
    stop = loguru_internals.mark_raw()
    try:
        logger.opt(raw=True).info("raw")
        logger.opt(raw=False).info("not")
        stop()
        logger.opt(raw=True).info("no more")
    finally:
        stop()
        logger.remove(handler)
    assert [loguru_internals.RAW in record for record in records] == [True, False, False]


def test_markup_becomes_escape_sequences_or_nothing():
    """Contract of `Colorizer.prepare_format`, `strip`, `colorize` and `ansify`."""
    assert loguru_internals.without_markup("<red>{message}</red> {{}}") == "{message} {{}}"
    assert loguru_internals.with_colours("<level>{message}</level>", "<red><bold>") == "\x1b[31m\x1b[1m{message}\x1b[0m"
    assert loguru_internals.level_colour("INFO") == "<bold>"
    assert loguru_internals.level_colour("Level 3") == ""
    with pytest.raises(ValueError, match="redd"):
        loguru_internals.without_markup("<redd>{message}</redd>")


def test_a_made_record_is_like_one_of_logurus():
    """A record built by us has the same keys, types and colour handling."""
    records = []
    handler = logger.add(lambda it: records.append(it.record))
    try:
        logger.opt(exception=ValueError("wrong")).info("hello")
    finally:
        logger.remove(handler)
    theirs, ours = records[0], loguru_internals.make_record("INFO", "hello", name="me", exception=ValueError("wrong"))
    assert sorted(theirs) == sorted(ours) == KEYS
    assert {key: type(theirs[key]) for key in KEYS} == {key: type(ours[key]) for key in KEYS}
    assert ours["level"].no == 20
    assert ours["exception"].type is ValueError
    assert abs(ours["time"] - datetime.now(UTC)).total_seconds() < 60


def test_rotation_is_parsed_as_by_loguru(tmp_path):
    """Rotation accepts a size, an interval and a time of day, as in loguru."""
    path = tmp_path / "job.log"
    path.write_text("x")
    now = loguru_internals.make_record("INFO", "", name="")["time"]
    assert loguru_internals.rules(str(path), None, None, None).new_due is None
    size = loguru_internals.rules(str(path), "1 KB", None, None).new_due()
    assert (size(now, 1000, str(path)), size(now, 1001, str(path))) == (False, True)
    assert loguru_internals.rules(str(path), 10, None, None).new_due()(now, 11, str(path))
    loguru_internals.note_birth(str(path))
    hourly = loguru_internals.rules(str(path), "1 hour", None, None).new_due()
    assert not hourly(now, 10**9, str(path))
    assert hourly(now + (now.replace(year=2000) - now.replace(year=1999)), 0, str(path))
    with pytest.raises(ValueError, match="often"):
        loguru_internals.rules(str(path), "often", None, None)


def test_retention_and_compression_are_parsed_as_by_loguru(tmp_path):
    """Retention accepts a number of files, compression a format, as in loguru."""
    path = tmp_path / "job.log"
    rules = loguru_internals.rules(str(path), None, 1, "gz")
    old = tmp_path / "job.2026.log"
    path.write_text("x")
    old.write_text("old")
    rules.compress(str(old))
    assert sorted(it.name for it in tmp_path.glob("job*")) == ["job.2026.log.gz", "job.log"]
    rules.retain([str(it) for it in tmp_path.glob("job*")])
    assert len(list(tmp_path.glob("job*"))) == 1
    assert any(pattern.endswith(".*.log") for pattern in rules.patterns)


def test_a_full_file_gets_a_name_with_its_time(tmp_path):
    """The new name contains the time and is not taken by another file."""
    path = tmp_path / "job.log"
    path.write_text("x")
    first = loguru_internals.set_aside_name(str(path))
    assert first.startswith(str(tmp_path / "job.2"))
    assert first.endswith(".log")
    Path(first).write_text("taken")
    assert loguru_internals.set_aside_name(str(path)) != first


def test_a_path_may_hold_the_time(tmp_path):
    """A path may contain `{time}` and no other braces."""
    assert loguru_internals.path_now(str(tmp_path / "{time:YYYY}.log")).startswith(str(tmp_path / "2"))
    with pytest.raises(KeyError):
        loguru_internals.path_now("{bad}.log")


def test_the_methods_call_log_with_the_level_and_the_options():
    """Contract of `_log(level, from_decorator, options, message, args, kwargs)` with nine options."""
    parameters = list(inspect.signature(type(logger)._log).parameters)
    assert parameters == ["self", "level", "from_decorator", "options", "message", "args", "kwargs"]
    raw = logger.opt(exception=True, depth=2, record=True, lazy=True, colors=True, raw=True, capture=False)
    assert raw._options == (True, 2, True, True, True, True, False, [], {})


def test_the_methods_are_those_of_loguru():
    """Our methods copy the source of loguru's, which must not change."""
    source = inspect.getsource(type(logger).info)
    assert '__self._log("INFO", False, __self._options, __message, args, kwargs)' in source
    assert "options = (True,) + __self._options[1:]" in inspect.getsource(type(logger).exception)
    assert "__self._log(__level, False, __self._options, __message, args, kwargs)" in inspect.getsource(
        type(logger).log
    )


def test_the_source_lines_that_format_the_message_are_as_expected():
    """`braces` recognizes formatting errors by these source lines."""
    source = inspect.getsource(type(logger)._log)
    for words in ("message.format(*args, **kwargs)", '"message": str(message),', "Colorizer.prepare_message("):
        assert source.count(words) == 1


def test_a_logger_travels_without_its_handlers():
    """Contract of `Logger(core, *options)` and `_options`: bound values travel, and the handlers are the target's."""
    lines = []
    handler = logger.add(lines.append, format="{extra[fold]} {message}")
    give_back = loguru_internals.let_travel()
    try:
        pickle.loads(pickle.dumps(logger.bind(fold=3))).info("here")
    finally:
        give_back()
        logger.remove(handler)

    assert lines == ["3 here\n"]
    assert not {"__reduce__", "__deepcopy__"} & set(vars(type(logger)))


def test_a_deep_copy_is_independent_and_without_our_handlers(no_handlers):
    """Contract of `_core` and `Core.__getstate__`: the job's handlers are copied, and shared references stay shared."""
    lines, of_copy, of_ours = [], [], []
    logger.add(lines.append, format="{extra[fold]} {message}", level="INFO")
    loguru_internals.adopt(logger.add(of_ours.append, format="{message}", level="DEBUG"))
    give_back = loguru_internals.let_travel()
    try:
        made, same = copy.deepcopy([logger.bind(fold=1), logger.bind(fold=2)])
    finally:
        give_back()
    assert made._core is same._core is not logger._core
    assert made._core.min_level == 20
    made.info("copied")
    made.remove()
    made.add(of_copy.append, format="{message}")
    same.info("of the copy")
    logger.bind(fold=3).info("of the original")
    assert lines == ["1 copied\n", "3 of the original\n"]
    assert (of_copy, of_ours) == (["of the copy\n"], ["of the original\n"])


SPAWN = """
import functools, multiprocessing, sys
from loguru import logger
from autogen_team._logs import loguru_internals

def work(given):
    given.info("child")
    given.complete()

if __name__ == "__main__":
    logger.remove()
    loguru_internals.let_travel()
    context = multiprocessing.get_context("spawn")
    add = functools.partial(logger.add, format="{message}")
    loguru_internals.adopt(add(lambda _: print("ours")))
    queued = add(sys.stdout, enqueue=True, context=context) if "queued" in sys.argv else add(lambda _: None)
    child = context.Process(target=work, args=(logger,))
    child.start()
    child.join()
    logger.remove(queued)
    print("end", child.exitcode)
"""


def test_a_logger_sent_to_a_spawned_process_keeps_the_handlers_that_can_be_pickled(run_python, tmp_path):
    """As in loguru's documentation, lines of handlers with `enqueue=True` come back to the parent."""
    path = tmp_path / "job.py"
    path.write_text(SPAWN)
    assert run_python(str(path), "queued") == (0, "child\nend 0\n", "")


def test_a_handler_that_cannot_be_pickled_stays_in_the_parent(run_python, tmp_path):
    """Loguru alone cannot start the process; with us, the child has loguru's default handler."""
    path = tmp_path / "job.py"
    path.write_text(SPAWN)
    status, out, err = run_python(str(path))
    assert (status, out) == (0, "end 0\n")
    assert err.endswith(" - child\n")


def test_a_handler_is_pickled_without_its_sink_if_it_has_a_queue():
    """Contract of `Handler.__getstate__`."""
    number = logger.add(lambda _: None, enqueue=True)
    try:
        handler = logger._core.handlers[number]
        state = handler.__getstate__()
        assert (state["_sink"], state["_thread"], state["_lock"]) == (None, None, None)
    finally:
        logger.remove(number)


def test_the_sinks_of_logging_and_of_asyncio_are_recognized():
    """Contract of `StandardSink._handler`, `AsyncSink._tasks`, `Handler._sink` and `Handler._thread`."""

    async def sink(_):
        inside.append(loguru_internals.is_inside_a_sink())

    async def job():
        logger.info("line")
        await logger.complete()
        inside.append(loguru_internals.is_inside_a_sink())

    inside = []
    standard = logging.NullHandler()
    numbers = [logger.add(standard), logger.add(sink)]
    numbers.append(logger.add(lambda _: inside.append(loguru_internals.is_inside_a_sink()), enqueue=True))
    try:
        assert loguru_internals.logging_sinks() == (standard,)
        logger._core.handlers[numbers[1]]._sink._tasks  # noqa: B018 - it is there
        asyncio.run(job())
        logger.complete()
    finally:
        for number in numbers:
            logger.remove(number)
    assert sorted(inside) == [False, True, True]
    assert loguru_internals.logging_sinks() == ()


def test_the_failure_of_a_coroutine_sink_names_the_module_of_the_sinks():
    """With `catch=False`, `check_exception` is in the traceback."""
    found = []

    async def fail(_):
        raise ValueError("wrong")

    async def job():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context["exception"]))
        logger.info("line")
        await logger.complete()
        await asyncio.sleep(0)

    number = logger.add(fail, catch=False)
    try:
        asyncio.run(job())
    finally:
        logger.remove(number)
    [error] = found
    assert loguru_internals.comes_from_a_sink((type(error), error, error.__traceback__))
    assert not loguru_internals.comes_from_a_sink((ValueError, ValueError(), None))


def test_all_handlers_but_ours_are_removed(no_handlers):
    """Contract of `Logger.remove(handler_id=None)` of the process's logger, which `configure` also calls."""
    lines, calls = [], []
    undo = loguru_internals.keep_on_removal(lambda: calls.append(list(logger._core.handlers)))
    try:
        logger.remove()
        assert calls == []  # no handler of ours was installed
        logger.add(lines.append)
        ours = logger.add(lines.append, format="{message}", level="INFO")
        loguru_internals.adopt(ours)
        assert loguru_internals.has_other_handlers()
        logger.remove()
        logger.configure(handlers=[])
        assert calls == [[ours], [ours]]
        assert (logger._core.min_level, loguru_internals.has_other_handlers()) == (20, False)
        logger.info("still")
        with pytest.raises(ValueError, match="no existing handler"):
            logger.remove(10**6)
        logger.remove(ours)
    finally:
        undo()
    assert lines == ["still\n"]
    assert inspect.signature(type(logger).remove).parameters.keys() == {"self", "handler_id"}


def test_parts_of_a_record_are_made_as_loguru_makes_them():
    """Contract of `RecordThread`, `RecordProcess`, and a time that loguru can format."""
    made = loguru_internals.make_record("INFO", "hello", name="me")
    assert (loguru_internals.record_thread(1, "one").id, loguru_internals.record_process(2, "two").name) == (1, "two")
    time = loguru_internals.record_time(1e9, made["time"])
    assert type(time) is type(made["time"])
    assert (time.timestamp(), time.tzinfo) == (1e9, made["time"].tzinfo)


@pytest.mark.parametrize("thread", [None, 1])
def test_a_record_of_logging_is_logged_as_loguru_would(no_handlers, monkeypatch, thread):
    """Our call repeats `Logger._log` except looking up the caller, so changes in loguru must be noticed."""
    records = []
    logger.add(lambda it: records.append(it.record), level="DEBUG")
    source = logging.LogRecord("lib.part", 25, "/lib/part.py", 7, "hello", None, None, "work")
    source.thread, source.threadName = thread, thread and "worker"
    source.created, source.levelname = 1e9, "NOTICE"
    monkeypatch.setattr(logger._core, "extra", {"job": "digits"})
    monkeypatch.setattr(logger._core, "patcher", lambda record: record["extra"].update(patched=True))
    with logger.contextualize(step=1):
        logger.patch(lambda it: it["extra"].update(field=2)).log(25, "hello")
        loguru_internals.log(source, "hello", {"field": 2}, None)
    theirs, ours = records
    assert ours["extra"] == theirs["extra"] == {"job": "digits", "step": 1, "patched": True, "field": 2}
    assert list(theirs) == list(ours)
    assert {key: type(theirs[key]) for key in KEYS} == {key: type(ours[key]) for key in KEYS}
    same = ["exception", "message", "process"] + ([] if thread else ["thread"])
    assert [vars_of(theirs[key]) for key in same] == [vars_of(ours[key]) for key in same]
    assert (ours["level"].no, ours["level"].icon, ours["level"].name) == (25, theirs["level"].icon, "NOTICE")
    assert (ours["name"], ours["module"], ours["function"], ours["line"]) == ("lib.part", "part", "work", 7)
    assert (ours["file"].name, ours["file"].path) == ("part.py", "/lib/part.py")
    assert (ours["time"].timestamp(), ours["time"].tzinfo) == (1e9, theirs["time"].tzinfo)
    assert ours["elapsed"] - theirs["elapsed"] == ours["time"] - theirs["time"]


def vars_of(part):
    """Return the attributes of a part of a record, for comparison."""
    return {name: getattr(part, name) for name in type(part).__slots__} if hasattr(type(part), "__slots__") else part


def test_a_handler_takes_a_record_with_the_number_of_its_level():
    """Contract of `Handler.emit(record, level_id, from_decorator, is_raw, colored_message)` as `_log` calls it."""
    number = logger.add(lambda _: None)
    try:
        parameters = list(inspect.signature(logger._core.handlers[number].emit).parameters)
    finally:
        logger.remove(number)
    assert parameters == ["record", "level_id", "from_decorator", "is_raw", "colored_message"]
    source = inspect.getsource(type(logger)._log)
    assert "handler.emit(log_record, level_id, from_decorator, raw, colored_message)" in source
    assert '"extra": {**core.extra, **context.get(), **extra}' in source


def test_a_name_that_loguru_has_disabled_is_silent(no_handlers):
    """Contract of `Core.activation_list`: names end with a dot, the longest first."""
    lines = []
    logger.add(lines.append, format="{name}")
    logger.disable("lib")
    logger.enable("lib.part")
    try:
        for name in ("lib", "lib.other", "lib.part.deep", "library"):
            loguru_internals.log(logging.LogRecord(name, 30, "/lib.py", 1, "", None, None), "", {}, None)
    finally:
        logger.enable("lib")
    assert lines == ["lib.part.deep\n", "library\n"]


def test_the_representation_of_a_logger_shows_its_handlers(run_python):
    """Loguru formats levels as integers, also that of the silenced default handler."""
    code = """
from loguru import logger
from autogen_team._logs import loguru_internals
loguru_internals.set_default_handler_aside()
print(logger)
"""
    status, out, _ = run_python("-c", code)
    assert status == 0
    assert out.startswith("<loguru.logger handlers=[(id=0, level=")
