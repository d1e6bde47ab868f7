"""`autogen_team.testing`, for tests of code that logs."""

from __future__ import annotations

import logging
import sys

import pytest
from loguru import logger

from autogen_team.io.services import AlertsService, LoggerService
from autogen_team.testing import Line, caplog, capture_alerts, capture_logs

__all__ = ["caplog"]


def test_lines_are_captured_as_values():
    """A captured line has all attributes that a test may check."""
    with capture_logs() as lines:
        logger.bind(step=3).warning("loss is {}", "nan")
    number = sys._getframe().f_lineno - 1
    name = "test_lines_are_captured_as_values"
    assert lines == [Line("WARNING", "loss is nan", __name__, name, number, {"step": 3}, None)]


def test_an_exception_is_captured_as_itself():
    """The exception object is captured, not its text."""
    error = ValueError("wrong")
    with capture_logs() as lines:
        logger.opt(exception=error).error("failed")
    assert lines[0].exception is error


def test_only_requested_levels_are_captured():
    """By default, all levels are captured."""
    with capture_logs() as everything, capture_logs("ERROR") as errors:
        logger.trace("low")
        logger.error("high")
    assert [line.message for line in everything] == ["low", "high"]
    assert [line.message for line in errors] == ["high"]


def test_capturing_ends_with_the_block():
    """Capturing also ends if the tested code has removed all handlers."""
    kept = dict(logger._core.handlers)
    with capture_logs() as lines:
        logger.info("inside")
    logger.info("outside")
    assert [line.message for line in lines] == ["inside"]
    with capture_logs() as lines:
        logger._core.handlers = {}
    logger._core.handlers = kept


def test_records_of_libraries_are_captured_while_the_service_runs(capsys):
    """Records have their own logger names."""
    with LoggerService(sink="stderr", uncaught=False, run_log=False), capture_logs() as lines:
        logging.getLogger("library").warning("hello")
    assert [(line.logger, line.message) for line in lines] == [("library", "hello")]


def test_caplog_has_the_lines_of_loguru(caplog):
    """The record has message, level, name, place, exception and bound values."""
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.bind(step=3).exception("failed")
    (record,) = caplog.records
    assert caplog.record_tuples == [(__name__, logging.ERROR, "failed")]
    assert (record.levelname, record.funcName) == ("ERROR", "test_caplog_has_the_lines_of_loguru")
    assert record.extra == {"step": 3}
    assert "ValueError: wrong" in caplog.text


def test_caplog_obeys_its_own_level(caplog):
    """The level applies as to records of the standard library."""
    with caplog.at_level(logging.ERROR):
        logger.warning("low")
        logger.error("high")
    assert caplog.messages == ["high"]


def test_caplog_has_records_of_libraries_once(caplog, capsys):
    """Records reach caplog in two ways while the service runs."""
    with LoggerService(sink="stderr", uncaught=False, run_log=False):
        logging.getLogger("library").warning("once")
        logger.warning("once, too")
    assert caplog.messages == ["once", "once, too"]


def test_lines_are_captured_without_pytest(run_python):
    """Pytest need not be installed in a job."""
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
    """Alerts are captured as values, cleaned and masked as if sent; after the block they are sent again."""
    service = AlertsService(enable=False, app_name="job")

    with capture_alerts(service) as alerts:
        service.notify("done", "password=hunter2", level="success")
    service.notify("after", "the block")

    assert [(alert.title, alert.message, alert.level) for alert in alerts] == [("done", "password=***", "success")]
    assert capsys.readouterr().out == "[job] after: the block\n"


def test_alerts_that_no_channel_delivers_are_printed(capsys):
    """The behaviour without a desktop can be tested on any machine."""
    service = AlertsService(app_name="job")

    with capture_alerts(service, fail_with="no desktop") as alerts:
        service.notify("done", "trained")

    assert alerts == []
    assert capsys.readouterr().out == "[job] done: trained\n"
