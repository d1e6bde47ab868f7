"""What `autogen_team.testing` offers to those who test code that logs."""

from __future__ import annotations

import logging
import sys

import pytest
from loguru import logger

from autogen_team.io.services import AlertsService, LoggerService
from autogen_team.testing import Line, caplog, capture_alerts, capture_logs

__all__ = ["caplog"]


def test_lines_are_captured_as_values():
    """With everything that a test may want to look at."""
    with capture_logs() as lines:
        logger.bind(step=3).warning("loss is {}", "nan")
    number = sys._getframe().f_lineno - 1
    name = "test_lines_are_captured_as_values"
    assert lines == [Line("WARNING", "loss is nan", __name__, name, number, {"step": 3}, None)]


def test_an_exception_is_captured_as_itself():
    """Not as text."""
    error = ValueError("wrong")
    with capture_logs() as lines:
        logger.opt(exception=error).error("failed")
    assert lines[0].exception is error


def test_only_levels_that_are_asked_for_are_captured():
    """Everything by default."""
    with capture_logs() as everything, capture_logs("ERROR") as errors:
        logger.trace("low")
        logger.error("high")
    assert [line.message for line in everything] == ["low", "high"]
    assert [line.message for line in errors] == ["high"]


def test_capturing_ends_with_the_block():
    """Also when the tested code has removed all handlers."""
    kept = dict(logger._core.handlers)
    with capture_logs() as lines:
        logger.info("inside")
    logger.info("outside")
    assert [line.message for line in lines] == ["inside"]
    with capture_logs() as lines:
        logger._core.handlers = {}
    logger._core.handlers = kept


def test_records_of_libraries_are_captured_while_the_service_runs(capsys):
    """Under their own names."""
    with LoggerService(sink="stderr", uncaught=False, run_log=False), capture_logs() as lines:
        logging.getLogger("library").warning("hello")
    assert [(line.logger, line.message) for line in lines] == [("library", "hello")]


def test_caplog_sees_what_is_logged_through_loguru(caplog):
    """Message, level, name, place, exception and bound values."""
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.bind(step=3).exception("failed")
    (record,) = caplog.records
    assert caplog.record_tuples == [(__name__, logging.ERROR, "failed")]
    assert (record.levelname, record.funcName) == ("ERROR", "test_caplog_sees_what_is_logged_through_loguru")
    assert record.extra == {"step": 3}
    assert "ValueError: wrong" in caplog.text


def test_caplog_obeys_its_own_level(caplog):
    """As with the standard library's records."""
    with caplog.at_level(logging.ERROR):
        logger.warning("low")
        logger.error("high")
    assert caplog.messages == ["high"]


def test_caplog_sees_records_of_libraries_once(caplog, capsys):
    """Though they reach it on two ways while the service runs."""
    with LoggerService(sink="stderr", uncaught=False, run_log=False):
        logging.getLogger("library").warning("once")
        logger.warning("once, too")
    assert caplog.messages == ["once", "once, too"]


def test_without_pytest_lines_are_captured_all_the_same(run_python):
    """It is nothing that a job has installed."""
    code = """
import sys
sys.modules["pytest"] = None
from loguru import logger
from autogen_team import testing
logger.remove()
with testing.capture_logs() as lines:
    logger.info("hello")
print(lines[0].message, testing.__all__)
"""
    assert run_python("-c", code) == (
        0,
        "hello ['Alert', 'Line', 'RecordingChannel', 'capture_alerts', 'capture_logs']\n",
        "",
    )


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fail a test that leaves a handler behind."""
    before = list(logger._core.handlers)
    yield
    assert list(logger._core.handlers) == before


def test_alerts_are_captured_instead_of_sent(capsys):
    """As values, cleaned and masked like those that are sent; and sent again after the block."""
    service = AlertsService(enable=False, app_name="job")

    with capture_alerts(service) as alerts:
        service.notify("done", "password=hunter2", level="success")
    service.notify("after", "the block")

    assert [(alert.title, alert.message, alert.level) for alert in alerts] == [("done", "password=***", "success")]
    assert capsys.readouterr().out == "[job] after: the block\n"


def test_alerts_that_nobody_takes_are_printed(capsys):
    """What a job does on a machine without a desktop can be tested on any."""
    service = AlertsService(app_name="job")

    with capture_alerts(service, fail_with="no desktop") as alerts:
        service.notify("done", "trained")

    assert alerts == []
    assert capsys.readouterr().out == "[job] done: trained\n"
