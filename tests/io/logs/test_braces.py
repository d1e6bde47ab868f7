"""A message whose braces do not match its arguments does not stop the job."""

from __future__ import annotations

import pytest
from loguru import logger


class Unshowable:
    """An argument whose `str()` fails."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.fixture
def log(start, capsys):
    """Start logging, and return a function that returns the lines so far."""
    start(format="{level}:{function}:{message}:{extra}")

    def lines():
        return capsys.readouterr().err.splitlines()

    return lines


def test_json_with_arguments_is_logged_as_it_is(log):
    """The arguments are appended to the message. This is loguru's most reported crash."""
    logger.info('{"a": 1} {}', 5)
    assert log() == ['INFO:test_json_with_arguments_is_logged_as_it_is:{"a": 1} {} [5]:{}']


def test_json_with_named_arguments_is_logged_as_it_is(log):
    """Named arguments are bound to the record, as in loguru."""
    logger.warning('{"a": 1}', user="ada")
    assert log()[0].endswith(""":{"a": 1}:{'user': 'ada'}""")


@pytest.mark.parametrize("message", ["{", "}", "{} {}", "{0} {}", "{x}", "{0.nope}", "{:d}", "{!z}"])
@pytest.mark.parametrize("method", ["trace", "debug", "info", "success", "warning", "error", "critical"])
def test_no_message_raises(start, capsys, method, message):
    """No such message raises, at any level."""
    start(level="TRACE", format="{level} {message}")
    getattr(logger, method)(message, "value")
    assert capsys.readouterr().err == f"{method.upper()} {message} ['value']\n"


def test_a_level_by_name_or_number_is_kept(log):
    """`logger.log` handles braces like the other methods."""
    logger.log("ERROR", "{x}", 1)
    logger.log(33, "{x}", 2)
    assert [line.partition(":")[0] for line in log()] == ["ERROR", "Level 33"]


def test_the_exception_of_the_job_is_shown_and_not_that_of_the_formatting(log):
    """`logger.exception` with unmatched braces shows the job's exception, not the formatting error."""
    try:
        raise ValueError("of the job")
    except ValueError:
        logger.exception("{x}", 1)
    text = "\n".join(log())
    assert "ValueError: of the job" in text
    assert "KeyError" not in text


def test_an_exception_outside_of_a_handler_is_only_a_message(log):
    """Outside an `except` block, `logger.exception` logs only the message."""
    logger.exception("{x}", 1)
    assert len(log()) == 1


def test_an_argument_that_cannot_be_shown_is_named(log):
    """An argument whose `str()` fails is replaced by its type and the error."""
    logger.info("{}", Unshowable())
    assert ":{} [<Unshowable: RuntimeError when shown>]:" in log()[0]


def test_a_message_that_cannot_be_shown_is_named(log):
    """A message object whose `str()` fails is replaced by its type and the error."""
    logger.info(Unshowable())
    logger.info(5, 3)
    first, second = log()
    assert "<Unshowable: RuntimeError when shown>" in first
    assert ":5 [3]:" in second


def test_options_are_kept(log):
    """Depth, bound values, lazy and record arguments, markup and capture keep their effect."""

    def helper():
        logger.opt(depth=1).bind(bound=1).info("{x}", 1)

    helper()
    logger.opt(lazy=True).info("{x} {}", lambda: 5, y=lambda: 6)
    logger.opt(record=True).info("{x}", 2)
    logger.opt(colors=True).info("</red>{}", 3)
    logger.opt(capture=False).info("{x}", y=4)
    name = "test_options_are_kept"
    assert log() == [
        f"INFO:{name}:{{x}} [1]:{{'bound': 1}}",
        f"INFO:{name}:{{x}} {{}} [5]:{{'y': 6}}",
        f"INFO:{name}:{{x}} [2]:{{}}",
        f"INFO:{name}:</red>{{}} [3]:{{}}",
        f"INFO:{name}:{{x}}:{{}}",
    ]


def test_an_error_of_a_patch_is_raised(start):
    """Only errors in formatting the message are caught."""
    start()

    def fail(record):
        raise KeyError("of the patch")

    with pytest.raises(KeyError, match="of the patch"):
        logger.patch(fail).info("{}", 1)
    with pytest.raises(KeyError, match="of the patch"):
        logger.patch(fail).exception("{}", 1)
    with pytest.raises(KeyError, match="of the patch"):
        logger.patch(fail).log("INFO", "{}", 1)


def test_an_unknown_level_is_raised(start):
    """An unknown level is an error in the program, not in its data."""
    start()
    with pytest.raises(ValueError, match="does not exist"):
        logger.log("LOUD", "hello")


def test_without_the_service_loguru_is_as_it_was(start):
    """`stop` restores loguru's methods."""
    start()()
    with pytest.raises(KeyError):
        logger.info("{x}", 1)


def test_a_method_that_was_replaced_meanwhile_stays(start):
    """`stop` restores only methods that are still ours."""
    methods = type(logger)
    before = methods.info
    stop = start()
    methods.info = replaced = lambda self, message: None
    try:
        stop()
        assert methods.info is replaced
    finally:
        methods.info = before


def test_the_methods_keep_their_documentation(start):
    """`help(logger.info)` shows loguru's documentation."""
    before = logger.info.__doc__
    start()
    assert (logger.info.__doc__, logger.info.__name__) == (before, "info")
