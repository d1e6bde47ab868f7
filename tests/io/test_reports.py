"""Internal errors are reported with any logging configuration of the job."""

from __future__ import annotations

import configparser
import copy
import logging
import logging.config
import pickle

import pytest

from autogen_team._process import reports

REPORT = logging.getLogger("autogen_team")


def by_dict():
    """Configure logging as most jobs do."""
    logging.config.dictConfig({"version": 1})


def by_file():
    """Configure logging as alembic does."""
    parser = configparser.ConfigParser()
    parser.read_string(
        "[loggers]\nkeys=root\n[handlers]\nkeys=\n[formatters]\nkeys=\n[logger_root]\nlevel=WARNING\nhandlers=\n"
    )
    logging.config.fileConfig(parser)


@pytest.fixture
def restored():
    """Restore the handlers, level and loggers that configuring logging again changes."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    others = {one: one.disabled for one in root.manager.loggerDict.values() if isinstance(one, logging.Logger)}
    yield
    root.handlers, root.level = handlers, level
    for one, disabled in others.items():
        one.disabled = disabled


@pytest.mark.parametrize("configure", [by_dict, by_file])
def test_reports_continue_when_logging_is_configured_again(restored, configure):
    """`disable_existing_loggers` is true by default; it still disables other loggers."""
    other = logging.getLogger("library.reports")
    configure()
    assert (REPORT.disabled, other.disabled) == (False, True)
    assert REPORT.isEnabledFor(logging.WARNING)


def test_the_job_sets_the_level_of_reports(restored):
    """A job can silence reports with `dictConfig`."""
    logging.config.dictConfig({"version": 1, "loggers": {"autogen_team": {"level": "CRITICAL"}}})
    try:
        assert not REPORT.isEnabledFor(logging.WARNING)
    finally:
        REPORT.setLevel(logging.NOTSET)


def test_the_logger_of_reports_is_like_any_other():
    """The logger can be copied and pickled, and has the process's logger class, which is set once."""
    kind = type(REPORT)
    reports.keep_enabled()
    assert type(REPORT) is kind
    assert isinstance(REPORT, logging.getLoggerClass())
    assert copy.deepcopy(REPORT) is pickle.loads(pickle.dumps(REPORT)) is REPORT


def test_a_full_disk_is_reported_after_dict_config(run_python):
    """A full disk is reported in a real process."""
    code = """
import logging.config
from loguru import logger
from autogen_team import LoggerService
with LoggerService(sink="/dev/full"):
    logging.config.dictConfig({"version": 1})
    logger.info("line")
"""
    status, _, err = run_python("-c", code)
    assert status == 0
    assert "cannot write the log to /dev/full" in err


def test_an_internal_error_is_reported_and_not_raised(caplog):
    """The report has the traceback."""
    with reports.guard("%s did not %s", "a part", "stop"):
        raise ValueError("wrong")

    [record] = caplog.records
    assert (record.levelname, record.message) == ("WARNING", "a part did not stop")
    assert record.exc_info[0] is ValueError


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_exit_of_the_job_passes_a_guard(kind, caplog):
    """KeyboardInterrupt and SystemExit pass the guard without a report."""
    with pytest.raises(kind), reports.guard("not said"):
        raise kind

    assert caplog.records == []
