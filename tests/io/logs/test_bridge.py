"""Lines of libraries appear in the job's log; `stop` restores the standard library's logging."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import logging
import logging.config
import logging.handlers
import queue
import sys
import warnings
from pathlib import Path

import pytest
from loguru import logger

from autogen_team._logs import bridge, passing

FORMAT = "{level}|{name}|{function}|{message}"


@pytest.fixture
def library(request):
    """Return a standard logger that no other test uses."""
    made = logging.getLogger(f"library.{request.node.name}")
    yield made
    made.handlers.clear()
    made.propagate = True
    made.setLevel(logging.NOTSET)


def test_a_library_is_logged_under_its_own_name(start, capsys, library):
    """The line has the library's logger name, function, level and arguments."""
    start(intercept=True, format=FORMAT)
    library.warning("found %d of %s", 3, "five")
    name = "test_a_library_is_logged_under_its_own_name"
    assert capsys.readouterr().err == f"WARNING|library.{name}|{name}|found 3 of five\n"


def test_place_and_exception_are_the_librarys(start, tmp_path, strict, library):
    """Place and exception are the library's, as if it used loguru."""
    start(sink=str(tmp_path / "job.log"), serialize=True, intercept=True)
    try:
        raise ValueError("wrong")
    except ValueError:
        library.exception("failed", stack_info=True)
    line = strict((tmp_path / "job.log").read_text())
    assert (line["module"], line["level"]) == ("test_bridge", "ERROR")
    assert line["line"] > 40
    assert line["exception"].endswith("ValueError: wrong")
    assert line["message"].startswith("failed\nStack (most recent call last):")


def test_levels_of_a_librarys_own_are_kept(start, capsys, library):
    """Custom levels are kept, by number and by name."""
    logging.addLevelName(25, "NOTICE")
    start(intercept=True, format="{level}|{level.no}|{message}")
    library.setLevel(1)
    library.log(25, "named")
    library.log(33, "numbered")
    library.log(15, "below")
    assert capsys.readouterr().err == "NOTICE|25|named\nLevel 33|33|numbered\n"


def test_no_level_is_lowered(start, library):
    """The levels of loggers do not change, so disabled lines still cost little."""
    before = logging.getLogger().level, library.getEffectiveLevel()
    start(intercept=True, level="TRACE")
    assert (logging.getLogger().level, library.getEffectiveLevel()) == before
    assert not library.isEnabledFor(logging.DEBUG)


def test_arguments_that_do_not_match_lose_no_line(run_python, script):
    """The standard library would print a traceback for such arguments."""
    body = 'import logging\nlogging.getLogger("x").warning("%d of %d", "one")'
    status, _, err = run_python(script(body, intercept=True))
    assert (status, err) == (
        0,
        "WARNING|%d of %d ('one',) [TypeError: %d format: a real number is required, not str]\n",
    )


def test_braces_of_a_library_are_not_formatted(start, capsys, library):
    """Braces in a library's message are not loguru fields."""
    start(intercept=True)
    library.warning('{"json": 1} {} {x}')
    assert capsys.readouterr().err == 'WARNING|{"json": 1} {} {x}\n'


def print_on_stderr(library):
    """Add a console handler of the library's own, as mlflow, alembic and transformers do."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("own %(message)s"))
    library.addHandler(handler)
    library.propagate = False
    library.setLevel(logging.INFO)
    return handler


def test_a_librarys_own_console_is_intercepted(start, capsys, library):
    """Lines that the library printed itself are in the log only; its handler stays installed."""
    own_console = print_on_stderr(library)
    stop = start(intercept=True)
    library.info("once")
    library.getChild("part").info("from a part")
    assert capsys.readouterr().err == "INFO|once\nINFO|from a part\n"
    assert (own_console in library.handlers, library.propagate) == (True, False)
    stop()
    library.info("after")
    assert capsys.readouterr().err == "own after\n"
    assert own_console.filters == []


def test_it_does_not_matter_which_comes_first(start, capsys, request):
    """A console handler added after the start is intercepted too."""
    start(intercept=True)
    late = logging.getLogger(f"late.{request.node.name}")
    late.addHandler(logging.StreamHandler(sys.stderr))
    late.propagate = False
    late.warning("late")
    late.handlers.clear()
    assert capsys.readouterr().err == "WARNING|late\n"


def test_a_librarys_own_level_and_filter_hold(start, capsys, library):
    """Lines that the library's handler would drop are not in the log."""
    own_console = print_on_stderr(library)
    own_console.setLevel(logging.ERROR)
    own_console.addFilter(lambda record: "not" not in record.getMessage())
    start(intercept=True)
    library.warning("too low")
    library.error("not this")
    library.error("this")
    assert capsys.readouterr().err == "ERROR|this\n"


def test_other_handlers_of_a_library_continue(start, capsys, library, tmp_path):
    """A library's own file still gets its lines, in the library's format."""
    print_on_stderr(library)
    file = logging.FileHandler(tmp_path / "library.log")
    library.addHandler(file)
    start(intercept=True)
    library.warning("both")
    file.close()
    assert (tmp_path / "library.log").read_text() == "both\n"
    assert capsys.readouterr().err == "WARNING|both\n"


def test_a_silent_library_stays_silent(start, capsys, library):
    """A library without console handler and propagation stays silent."""
    library.addHandler(logging.StreamHandler(io.StringIO()))
    library.propagate = False
    start(intercept=True)
    library.error("private")
    assert capsys.readouterr().err == ""


def test_a_stream_that_is_the_console_by_number_is_the_console(start, library, tmp_path):
    """A stream on descriptor 2 counts as the console, because pytest and notebooks replace `sys.stderr`."""
    start(sink=str(tmp_path / "job.log"), intercept=True)
    with open(2, "w", closefd=False) as stream:
        library.addHandler(logging.StreamHandler(stream))
        library.propagate = False
        library.error("in the log")
    assert (tmp_path / "job.log").read_text() == "ERROR|in the log\n"


def test_mlflow_is_intercepted_whenever_it_is_imported(run_python, script):
    """MLflow's loggers do not propagate; they print by a handler that is added when MLflow is imported."""
    body = """
import logging
import mlflow
logging.getLogger("mlflow.tracking").info("after")
logging.getLogger("alembic.runtime").warning("migrating")
from mlflow.utils import logging_utils
logging_utils.disable_logging()
logging.getLogger("mlflow.tracking").info("silenced by mlflow")
logging_utils.enable_logging()
stop()
logging.getLogger("mlflow.tracking").info("own again")
"""
    code = script(body, intercept=True, format="{level}|{name}|{message}")
    for first in ("", "import mlflow\n"):
        Path(code).write_text(first + Path(code).read_text())
        status, _, err = run_python(code)
        assert status == 0, err
        ours, own = err.splitlines()[:-1], err.splitlines()[-1]
        assert ours == ["INFO|mlflow.tracking|after", "WARNING|alembic.runtime|migrating"]
        assert own.endswith("INFO mlflow.tracking: own again")


def test_logging_that_is_configured_again_is_still_intercepted(start, capsys, library):
    """Interception survives `dictConfig`, which removes the handlers of the root logger."""
    root = logging.getLogger()
    before = list(root.handlers)
    start(intercept=True)
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "root": {"handlers": []}})
    library.warning("still here")
    root.handlers[:] = before + [handler for handler in root.handlers if isinstance(handler, bridge.Bridge)]
    assert capsys.readouterr().err == "WARNING|still here\n"


def test_basic_config_does_not_double_the_lines(run_python, script):
    """`basicConfig` finds a configured root logger and adds no handler."""
    body = 'import logging\nlogging.basicConfig(level="INFO")\nlogging.getLogger("x").warning("once")'
    assert run_python(script(body, intercept=True)) == (0, "", "WARNING|once\n")


def test_handlers_of_the_job_on_the_root_logger_continue(start, capsys, library):
    """Handlers on the root logger get the lines as well."""
    stream = io.StringIO()
    mine = logging.StreamHandler(stream)
    logging.getLogger().addHandler(mine)
    try:
        start(intercept=True)
        library.warning("both")
    finally:
        logging.getLogger().removeHandler(mine)
    assert (stream.getvalue(), capsys.readouterr().err) == ("both\n", "WARNING|both\n")


def test_caplog_sees_the_records_of_libraries_once(start, caplog, library):
    """Pytest's own handler still gets each record once."""
    start(intercept=True)
    library.warning("seen")
    assert caplog.messages == ["seen"]


def test_a_patch_around_ours_stays(start, monkeypatch, library, capsys):
    """`stop` keeps another tool's patch around our method and disables our part."""
    stop = start(intercept=True)
    ours = logging.Logger.filter

    def around(self, record):
        return ours(self, record)

    logging.Logger.filter = around
    try:
        stop()
        assert logging.Logger.filter is around
        library.addHandler(logging.StreamHandler(sys.stderr))
        library.propagate = False
        library.warning("own")
        assert capsys.readouterr().err == "own\n"
    finally:
        del logging.Logger.filter


def test_loguru_forwarded_to_the_standard_library_does_not_come_back(start, capsys):
    """A forwarding handler, as in loguru's documentation, causes no loop."""

    class Propagate(logging.Handler):
        def emit(self, record):
            logging.getLogger(record.name).handle(record)

    start(intercept=True)
    mine = logger.add(Propagate(), format="{message}")
    try:
        logger.warning("once")
        logging.getLogger("library.forwarded").warning("once, too")
    finally:
        logger.remove(mine)
    assert capsys.readouterr().err == "WARNING|once\nWARNING|once, too\n"


class Intercept(logging.Handler):
    """The handler in loguru's documentation."""

    def emit(self, record):
        frame, depth = inspect.currentframe(), 0
        while frame and (depth == 0 or frame.f_code.co_filename == logging.__file__):
            frame = frame.f_back
            depth += 1
        logger.opt(depth=depth, exception=record.exc_info).log(record.levelname, record.getMessage())


class InterceptByCount(logging.Handler):
    """The handler in an earlier version of loguru's documentation."""

    def emit(self, record):
        logger.opt(depth=6).log(record.levelname, "{} [{}]", record.getMessage(), record.name)


@pytest.fixture
def on_root(request):
    """Return a function that adds a handler to the root logger until the end of the test."""
    added = []

    def add(handler):
        logging.getLogger().addHandler(handler)
        added.append(handler)
        return handler

    yield add
    for handler in added:
        logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", [Intercept, InterceptByCount])
def test_an_interceptor_of_the_jobs_own_logs_each_record_once(start, capsys, library, on_root, kind, when):
    """A job's handler that forwards records to loguru replaces ours; each record names its caller."""
    lines = []
    mine = logger.add(lines.append, format="{function}: {message}")
    try:
        if when == "before":
            on_root(kind())
        start(intercept=True, format="{function}: {message}")
        if when == "after":
            on_root(kind())
        library.warning("once")
    finally:
        logger.remove(mine)
    [line] = lines
    assert line.startswith("test_an_interceptor_of_the_jobs_own_logs_each_record_once: once")
    assert capsys.readouterr().err == line


def test_a_handler_that_logs_something_else_does_not_replace_the_record(start, capsys, library, on_root):
    """A record is considered forwarded only if a line with its text is logged."""

    class Counting(logging.Handler):
        def emit(self, record):
            logger.info("records so far: {}", 1)

    on_root(Counting())
    start(intercept=True)
    library.warning("disk is full")
    assert capsys.readouterr().err == "INFO|records so far: 1\nWARNING|disk is full\n"


def test_a_record_logged_inside_a_handler_is_logged_once(start, capsys, library, on_root):
    """A record logged while a handler processes another one is logged once."""

    class Talking(Intercept):
        def emit(self, record):
            if "inner" not in record.getMessage():
                library.warning("inner")
                super().emit(record)

    on_root(Talking())
    start(intercept=True)
    library.warning("outer")
    assert capsys.readouterr().err == "WARNING|inner\nWARNING|outer\n"


def test_an_interrupted_handler_does_not_claim_later_records(start, capsys, library, on_root):
    """After Ctrl-C in a handler, later records with the same text are still logged."""

    class Interrupted(logging.Handler):
        def emit(self, record):
            if "stop" in record.getMessage():
                raise KeyboardInterrupt

    on_root(Interrupted())
    start(intercept=True)
    with pytest.raises(KeyboardInterrupt):
        library.warning("stop")
    logger.warning("stop")
    library.warning("next")
    assert capsys.readouterr().err == "WARNING|stop\nWARNING|next\n"
    assert not passing.under_way


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_libraries_are_logged_after_an_interrupt_during_formatting(start, capsys, library, error):
    """After Ctrl-C or SystemExit in formatting, libraries are still logged."""

    class Slow:
        def __str__(self):
            raise error

        __repr__ = object.__repr__

    start(intercept=True)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        library.warning("%s", Slow())
    library.warning("after")
    assert capsys.readouterr().err.endswith("WARNING|after\n")


class Console:
    """An object with a stream, like the console of rich."""

    file = property(lambda _: sys.stdout)


class Wrapped(logging.Handler):
    """A console handler that is not a StreamHandler, like those of rich and absl."""

    def __init__(self, held):
        super().__init__()
        self.held = held

    def emit(self, record):
        sys.stdout.write(f"printed {record.getMessage()}\n")


@pytest.mark.parametrize("held", [Console(), logging.StreamHandler(sys.stdout), Wrapped(Console())])
def test_a_console_handler_of_any_kind_is_suppressed(start, capsys, library, on_root, held):
    """Console handlers are recognized by the stream they hold; the line appears once, in our format, masked."""
    if isinstance(held, logging.StreamHandler):
        held.setStream(sys.stdout)
    on_root(Wrapped(held))
    start(intercept=True)
    library.warning("password=hunter2")
    assert capsys.readouterr() == ("", "WARNING|password=***\n")


def test_rich_is_suppressed(run_python, script):
    """Rich's own handler is suppressed."""
    body = """
import logging
from rich.logging import RichHandler
logging.basicConfig(level="INFO", format="%(message)s", handlers=[RichHandler()])
logging.getLogger("library").warning("once")
"""
    assert run_python(script(body, intercept=True)) == (0, "", "WARNING|once\n")


@pytest.mark.parametrize("held", [io.StringIO(), None, 3, object(), logging.NullHandler()])
def test_a_handler_of_another_kind_continues(start, capsys, library, on_root, held):
    """A handler that does not visibly print on the console continues."""
    on_root(Wrapped(held))
    start(intercept=True)
    library.warning("both")
    assert capsys.readouterr() == ("printed both\n", "WARNING|both\n")


def test_a_console_handler_on_the_way_to_the_root_is_suppressed(start, capsys, library):
    """A library may have a console handler and propagate as well."""
    library.addHandler(logging.StreamHandler(sys.stderr))
    start(intercept=True)
    library.getChild("part").warning("once")
    assert capsys.readouterr().err == "WARNING|once\n"


def test_two_console_handlers_of_a_library_are_one_line(start, capsys, library):
    """A library with two console handlers logs one line."""
    print_on_stderr(library)
    library.addHandler(logging.StreamHandler(sys.stdout))
    start(intercept=True)
    library.warning("once")
    library.warning("twice")
    assert capsys.readouterr() == ("", "WARNING|once\nWARNING|twice\n")


def test_lines_that_a_sink_forwards_reach_the_job_s_handlers_once(start, capsys, library, on_root):
    """Neither loguru's PropagateHandler nor a handler used as a sink, as by `caplog`, doubles lines."""

    class Propagate(logging.Handler):
        def emit(self, record):
            logging.getLogger(record.name).handle(record)

    for kind in ("propagates", "is a sink"):
        stream = io.StringIO()
        own = on_root(logging.StreamHandler(stream))
        stop = start(intercept=True)
        mine = logger.add(Propagate() if kind == "propagates" else own, format="{message}")
        try:
            library.warning("of a library")
            logger.warning("of the job")
        finally:
            logger.remove(mine)
            stop()
            logging.getLogger().removeHandler(own)
        assert stream.getvalue().split() == ["of", "a", "library", "of", "the", "job"], kind
        assert capsys.readouterr().err == "WARNING|of a library\nWARNING|of the job\n"


@pytest.mark.parametrize("way", ["queue", "asyncio", "directly"])
def test_a_sink_that_logs_by_logging_is_called_once_for_a_line(start, library, way):
    """A line that a library logs inside the sink goes to the job's `logging` handlers, not to the sink again."""
    library.setLevel("INFO")
    stream = io.StringIO()
    library.addHandler(logging.StreamHandler(stream))
    calls = []

    def post(message):
        calls.append(message)
        library.info("HTTP Request: POST /hook")

    async def post_later(message):
        post(message)

    async def job():
        logger.info("one line")
        await logger.complete()

    start(intercept=True)
    mine = logger.add(post_later if way == "asyncio" else post, enqueue=way == "queue", format="{message}")
    try:
        asyncio.run(job())
        logger.complete()
    finally:
        logger.remove(mine)
    assert calls == ["one line\n"]
    assert stream.getvalue() == "HTTP Request: POST /hook\n"


def test_the_failure_of_a_coroutine_sink_is_not_sent_to_it(run_python, script):
    """With `catch=False`, asyncio reports the failure, which must not be sent to the failed sink."""
    body = """
import asyncio
calls = []

async def fail(message):
    calls.append(message)
    raise ValueError("no network")

async def job():
    logger.info("one line")
    await logger.complete()
    await asyncio.sleep(0)

logger.add(fail, catch=False)
asyncio.run(job())
print(len(calls))
"""
    status, out, err = run_python(script(body, intercept=True, uncaught=True))
    assert (status, out) == (0, "1\n")
    assert "INFO|one line" in err
    assert "no network" in err


def test_a_warning_of_a_sink_is_shown_by_the_last_resort(run_python, script):
    """Without another handler, the standard library's last resort prints it, as without us."""
    body = """
import logging
logger.add(lambda _: logging.getLogger("library").warning("retrying"))
logger.info("line")
"""
    assert run_python(script(body, intercept=True)) == (0, "", "INFO|line\nretrying\n")


def test_fields_of_the_caller_are_fields_of_the_line(start, tmp_path, strict, library, capsys):
    """`extra=`, a LoggerAdapter and a filter can add fields; private attributes of a library are left out."""

    def add(record):
        record.tenant, record._private = "t1", object()
        return True

    start(sink=str(tmp_path / "job.jsonl"), serialize=True, intercept=True)
    start(intercept=True, format="{message} {extra[status]} {extra[request_id]}")
    library.warning("done", extra={"status": 503, "message_": "free", "level": "own"})
    library.addFilter(add)
    logging.LoggerAdapter(library, {"request_id": "r1"}).warning("again")
    library.removeFilter(add)
    first, second = (strict(line) for line in (tmp_path / "job.jsonl").read_text().splitlines())
    assert (first["status"], first["message_"], first["extra_level"]) == (503, "free", "own")
    assert {name: second.get(name) for name in ("request_id", "tenant", "_private", "status")} == {
        "request_id": "r1",
        "tenant": "t1",
        "_private": None,
        "status": None,
    }
    assert capsys.readouterr().err == "done 503 \nagain  r1\n"


def test_a_record_from_a_queue_keeps_its_process(start, tmp_path, strict):
    """A record from a QueueListener keeps the time, process, thread and traceback of its worker."""
    theirs = logging.makeLogRecord(
        {
            "name": "worker",
            "levelname": "WARNING",
            "levelno": 30,
            "msg": "late",
            "created": 1e9,
            "process": 1,
            "processName": "SpawnProcess-1",
            "thread": 2,
            "threadName": "Thread-7",
            "exc_text": "ValueError: there",
        }
    )
    start(sink=str(tmp_path / "job.jsonl"), serialize=True, intercept=True)
    start(sink=str(tmp_path / "job.log"), intercept=True, format="{time:YYYY} {process.name} {message}")
    records = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, bridge.Bridge())
    listener.start()
    logging.handlers.QueueHandler(records).enqueue(theirs)
    listener.stop()
    line = strict((tmp_path / "job.jsonl").read_text())
    assert line["time"].startswith("2001-09-09T01:46:40.")
    assert (line["process"], line["thread"], line["message"]) == (1, "Thread-7", "late\nValueError: there")
    assert (tmp_path / "job.log").read_text().startswith("2001 SpawnProcess-1 late\n")


def test_warnings_are_lines(start, capsys):
    """A warning has its category and place; a warning with an explicit file goes there."""
    start(intercept=True, format="{level}|{name}|{module}|{message}")
    warnings.showwarning("careful", UserWarning, __file__, 1)
    assert capsys.readouterr().err == "WARNING|py.warnings|test_bridge|UserWarning: careful\n"
    with pytest.warns(UserWarning, match="to a file"):  # pytest's handler, which was there before
        warnings.showwarning("to a file", UserWarning, __file__, 1, io.StringIO())
    assert capsys.readouterr().err == ""


def test_warnings_of_a_script_are_lines_and_then_are_not(run_python, script):
    """Warnings are logged until `stop`, in a process without pytest's handling of warnings."""
    body = 'import warnings\nwarnings.warn("one")\nstop()\nwarnings.warn("two")'
    status, _, err = run_python(script(body, intercept=True))
    first, second, _ = err.splitlines()
    assert (status, first) == (0, "WARNING|UserWarning: one")
    assert second.endswith("UserWarning: two")


def test_a_replaced_showwarning_stays(start):
    """`stop` keeps a replaced `showwarning`, and ours, if still called, calls the original."""
    seen = []
    before = warnings.showwarning
    warnings.showwarning = lambda *args: seen.append(args)
    try:
        stop = start(intercept=True)
        ours = warnings.showwarning
        warnings.showwarning = theirs = lambda *_: None
        stop()
        assert warnings.showwarning is theirs
        ours("late", UserWarning, "file.py", 1)
        assert len(seen) == 1
    finally:
        warnings.showwarning = before


def test_without_interception_libraries_are_left_alone(start, capsys, library):
    """With `intercept=False`, libraries are left alone."""
    before = logging.Logger.filter, warnings.showwarning
    start(intercept=False)
    with contextlib.suppress(KeyError):
        library.warning("not ours")
    assert (logging.Logger.filter, warnings.showwarning) == before
    assert "WARNING|" not in capsys.readouterr().err


def test_a_library_that_logs_while_a_line_is_built_does_not_loop(start, capsys, library):
    """A source of run facts may query a server, whose library logs."""
    from autogen_team._process import run_events

    def facts():
        library.warning("asking")
        return {}

    start(intercept=True, format="{extra[run_id]}{message}")
    restore = run_events.set_source(facts)
    try:
        logger.info("line")
    finally:
        restore()
    assert capsys.readouterr().err == "asking\nline\n"


def test_filters_of_the_bridge_are_applied(library):
    """A filter added to the bridge is applied."""
    made = bridge.Bridge()
    made.addFilter(lambda _: False)
    lines = []
    mine = logger.add(lines.append, format="{message}")
    try:
        made.handle(library.makeRecord("x", 40, "file", 1, "refused", (), None))
        assert lines == []
    finally:
        logger.remove(mine)


def test_a_warning_is_printed_without_any_handlers(run_python, script):
    """At exit, loguru has closed its handlers, so the standard library's last resort prints the warning."""
    body = """
import atexit, logging
for handler in list(logger._core.handlers):
    logger.remove(handler)
logging.getLogger("late").warning("shown")
logging.getLogger("late").info("not shown")
"""
    assert run_python(script(body, intercept=True)) == (0, "", "shown\n")


def test_a_sink_that_raises_does_not_raise_in_a_library(start, capsys):
    """With `catch=False`, a failing sink does not raise in the library; its line goes to stderr."""
    start(sink="/dev/full", catch=False, intercept=True)
    logging.getLogger("some.library").warning("connection lost")

    assert "connection lost" in capsys.readouterr().err
