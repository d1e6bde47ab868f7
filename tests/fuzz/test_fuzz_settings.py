"""Any environment and any `.env` give settings or a `ConfigurationError` with the reason."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loguru import logger

from autogen_team import GlobalContext
from autogen_team.errors import ConfigurationError, ConfigurationWarning
from autogen_team.io.osvariables import Env
from autogen_team.io.services import AlertsService, LoggerService, MlflowService

CLASSES = [LoggerService, AlertsService, MlflowService, Env, GlobalContext]
VARIABLES = sorted({variable for cls in CLASSES for variable in cls.variables().values()})
# Possible content of an environment: no NUL; bytes that are not UTF-8 are surrogates.
characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
bytes_of_the_system = st.binary(max_size=30).map(lambda data: os.fsdecode(data.replace(b"\0", b"")))
WORDS = [
    "true",
    "none",
    "0",
    "-1",
    "1e400",
    "nan",
    "inf",
    "5",
    "[]",
    "{}",
    '["a"]',
    "a b",
    "~",
    "~nobody/x",
    "http://",
    "://@",
    "INFO",
]
values = st.one_of(st.text(characters, max_size=30), bytes_of_the_system, st.sampled_from(WORDS))


def make_all() -> None:
    """Create an instance of each class, and use its functions about settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigurationWarning)
        for cls in CLASSES:
            try:
                made = cls()
            except ConfigurationError as error:
                assert str(error)  # noqa: PT017 - that it is this error is the point
            else:
                assert made == made.model_copy()
                assert repr(made)
                assert all(setting.value is not None for setting in made.settings())
                if cls is not Env:
                    assert set(made.environment()) <= set(VARIABLES)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(VARIABLES), values, max_size=6))
@example({"AUTOGEN_TEAM_ALERTS_PING": "hunter2 of latin-1: \udce9"})
def test_any_environment_gives_settings_or_our_error(variables):
    """Examples are numbers, words, JSON, control characters and bytes in other encodings."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        make_all()


@settings(deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.tuples(
                st.sampled_from([*VARIABLES, "OTHER", "export AUTOGEN_TEAM_LOGGER_LEVEL", "AUTOGEN_TEAM_LOGGER_LEVLE"]),
                st.sampled_from(["=", " = ", ":", "", "='", '="', "=${", "=${OTHER}", "=${OTHER:-"]),
                values,
                st.sampled_from(["\n", "\r\n", "'\n", '"\n', "}\n", " # why\n", ""]),
            ).map("".join),
            max_size=5,
        ).map(lambda lines: "".join(lines).encode("utf-8", "surrogateescape")),
    )
)
def test_any_dotenv_gives_settings_or_our_error(data):
    """The file may not be valid UTF-8, or may end inside a quote."""
    Path(".env").write_bytes(data)
    make_all()


@settings(deadline=None)
@given(st.sampled_from(VARIABLES), st.text(characters, max_size=30), st.text(characters, max_size=30))
def test_any_argument_gives_a_value_or_our_error(variable, first, second):
    """Any value is accepted or rejected; a pickled or copied service is equal."""
    for cls in CLASSES:
        for name, its in cls.variables().items():
            if its == variable:
                for value in (first, second, first.encode(), [first], {first: second}, 1.5, object):
                    try:
                        made = cls(**{name: value})
                    except ConfigurationError:
                        continue
                    assert made.model_copy() == made


FORMATS = [
    "{",
    "}",
    "{{",
    "{message}",
    "{time}",
    "{time:YYYY}",
    "{level",
    "{extra[x]}",
    "{0}",
    "{exception}",
    "<red>",
    "</red>",
    "<",
    "</>",
    "\\<",
    "!r",
    ":>8",
    ".",
    "[",
    "]",
    "{file.path}",
    "{elapsed.x}",
]


@settings(deadline=None)
@given(
    format=st.lists(st.one_of(st.sampled_from(FORMATS), st.text(characters, max_size=5)), max_size=8).map("".join),
    level=st.one_of(st.sampled_from(["INFO", "debug", "10"]), st.text(characters, max_size=10)),
    rotation=st.one_of(
        st.none(), st.sampled_from(["1 MB", "1 week", "00:00", "-1 MB", "1e999 GB"]), st.text(max_size=10)
    ),
    retention=st.one_of(st.none(), st.sampled_from(["1", "10 days", "-3 days"]), st.integers(), st.text(max_size=10)),
    compression=st.one_of(st.none(), st.sampled_from(["gz", "zip", "7z"]), st.text(max_size=5)),
    serialize=st.booleans(),
)
def test_a_logger_service_starts_and_logs_or_says_why_not(format, level, rotation, retention, compression, serialize):  # noqa: A002
    """Any accepted configuration works: a line is written, and logging it raises nothing."""
    service = LoggerService(
        sink="job.log",
        format=format,
        level=level,
        rotation=rotation,
        retention=retention,
        compression=compression,
        serialize=serialize,
        intercept=False,
        uncaught=False,
        run_log=False,
        catch=False,
    )
    try:
        service.start()
    except ConfigurationError as error:
        assert str(error)  # noqa: PT017 - that it is this error is the point
        return
    try:
        logger.critical("a {} line", "plain")
    finally:
        service.stop()
