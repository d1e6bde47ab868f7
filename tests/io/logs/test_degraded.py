"""A job whose loguru lacks a private name still runs, and one warning says what is lost."""

from __future__ import annotations

import pickle
from pathlib import Path

import loguru
import pytest

import testkit
from autogen_team._logs import loguru_names
from autogen_team._process.private_names import find

_PARTS = [(name, part) for part in loguru_names.LOGURU.parts for name in part.names]
_JOB = f"""
import sys
sys.path.append({str(Path(testkit.__file__).parents[1])!r})
import loguru
from testkit.renaming import rename
rename(NAME)
import logging
from autogen_team.io.services import LoggerService
with LoggerService(sink="job.log", rotation="10 MB") as service:
    logger = service.logger()
    logger.info("first {{}}", 1)
    logging.getLogger("library").warning("second %s", 2, extra={{"field": 3}})
    try:
        1 / 0
    except ZeroDivisionError:
        logger.exception("third")
    logger.opt(raw=True).info("fourth\\n")
logger.remove()
"""


@pytest.mark.parametrize("name", [name for name, _ in _PARTS])
def test_this_loguru_has_the_name(name):
    """Each listed name exists in the installed loguru."""
    missing = object()

    assert find(name, missing) is not missing


def test_each_name_belongs_to_one_feature():
    """No name is listed twice, so a missing one causes one warning."""
    names = [name for name, _ in _PARTS]

    assert len(set(names)) == len(names)


def test_the_version_in_the_warning_is_this_one():
    """The list states the loguru version with which the names were verified."""
    assert loguru.__version__.startswith(f"{loguru_names.LOGURU.versions}.")


@pytest.mark.parametrize("name", [name for name, _ in _PARTS])
def test_a_job_logs_without_the_name(run_python, name):
    """If loguru has renamed a name, the file has all lines, and one warning says what is lost."""
    status, out, err = run_python("-c", _JOB.replace("NAME", repr(name)))
    log = Path("job.log").read_text()

    assert (status, out) == (0, ""), err
    lost = dict(_PARTS)[name].lost
    assert max(log.count(lost), err.count(lost)) == 1, log + err
    assert max(log.count("The job runs, but"), err.count("The job runs, but")) == 1, log + err
    assert "first 1" in log
    assert "second 2" in log
    assert "ZeroDivisionError" in log
    assert "third" in log
    assert "fourth" in log


def test_parts_of_a_record_can_be_pickled_without_loguru_s_classes(monkeypatch):
    """Our substitutes for parts of a record have the same attributes and can be pickled."""
    from autogen_team._logs import loguru_internals

    monkeypatch.setattr(loguru_names.RECORDS, "_works", False)
    level = loguru_internals.make_record("INFO", "hello", name="me")["level"]

    assert (level.name, level.no, f"{level: <8}", str(level)) == ("INFO", 20, "INFO    ", "INFO")
    assert pickle.loads(pickle.dumps(level)).no == 20
