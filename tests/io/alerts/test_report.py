"""The alert about the end of a run starts with what a reader needs first."""

import pytest

from autogen_team._alerts import report
from autogen_team._process import run_events


def a_run(**changes):
    """Return a run."""
    fields = {"run_id": "abc", "name": "train", "experiment": "iris", "link": "http://tracking.example/#/runs/abc"}
    return run_events.Run(**{**fields, **changes}, attach=lambda path, folder: None)


def an_end(status="FAILED", reason=None, exception=None, duration=75.0):
    """Return an end."""
    return run_events.End(status, reason, exception, duration)


def deep(depth):
    """Raise an exception below many frames."""
    if depth == 0:
        raise ValueError("bad shape")
    deep(depth - 1)


def raised_by(function, *arguments):
    """Return the exception that a call raises."""
    try:
        function(*arguments)
    except Exception as error:
        return error
    raise AssertionError("it did not raise")


@pytest.mark.parametrize(
    ("status", "title", "level"),
    [
        ("FINISHED", "train finished", "success"),
        ("FAILED", "train failed", "error"),
        ("KILLED", "train was killed", "warning"),
    ],
)
def test_the_title_says_how_it_ended(status, title, level):
    """The title has the run's name and status, because some desktops display only the title."""
    said = report.job_ended(a_run(), an_end(status), host="gpu-7", rank=0)
    assert (said[0], said[2]) == (title, level)


def test_the_message_says_where_and_how_long():
    """The message has duration, host, reason, experiment, run and link."""
    _, message, *_ = report.job_ended(a_run(), an_end("KILLED", "SIGTERM"), host="gpu-7", rank=0)
    assert message.splitlines() == [
        "after 1 min 15 s on gpu-7",
        "SIGTERM",
        "experiment iris, run abc",
        "http://tracking.example/#/runs/abc",
    ]


def test_the_console_gets_all_but_the_traceback():
    """The traceback is left out, because the console already has it."""
    end = an_end(reason="ValueError: bad shape", exception=raised_by(deep, 3))
    _, message, _, brief = report.job_ended(a_run(), end, host="gpu-7", rank=0)
    assert brief == message.partition("\n\n")[0]
    assert "ValueError: bad shape" in brief


def test_a_rank_other_than_the_first_is_named():
    """The alert says which of several processes failed."""
    assert report.job_ended(a_run(), an_end(), host="gpu-7", rank=3)[0] == "train failed (rank 3)"


def test_a_local_store_has_no_link():
    """A run without a web page has no link."""
    _, message, *_ = report.job_ended(a_run(link=None), an_end(), host="gpu-7", rank=0)
    assert "None" not in message


def test_the_last_lines_of_the_traceback_are_included():
    """At most the last ten lines of the traceback are included, with the exception last."""
    end = an_end(reason="ValueError: bad shape", exception=raised_by(deep, 30))
    _, message, *_ = report.job_ended(a_run(), end, host="gpu-7", rank=0)
    _, _, traceback = message.partition("\n\n")
    assert traceback.startswith("...\n")
    assert len(traceback.splitlines()) == 11
    assert traceback.splitlines()[-1] == "ValueError: bad shape"


def test_a_short_traceback_is_complete():
    """A short traceback is not cut."""
    _, message, *_ = report.job_ended(a_run(), an_end(exception=raised_by(deep, 0)), host="gpu-7", rank=0)
    assert "\n\nTraceback (most recent call last):\n" in message


def test_secrets_are_masked_everywhere():
    """A password in the name, link, reason or exception is masked."""
    secret = "hunter" * 3
    run = a_run(name=f"train password={secret}", link=f"http://user:{secret}@tracking.example/#/runs/abc")
    end = an_end(reason=f"ValueError: password={secret}", exception=ValueError(f"password={secret}"))
    title, message, _, brief = report.job_ended(run, end, host="gpu-7", rank=0)
    assert secret not in title + message + brief


def test_an_exception_that_cannot_be_shown_does_not_lose_the_alert(monkeypatch):
    """If the traceback cannot be rendered, the alert names the exception and the rendering error."""

    def fail(*_):
        raise RecursionError

    monkeypatch.setattr(report.traceback, "format_exception", fail)
    _, message, *_ = report.job_ended(a_run(), an_end(exception=ValueError("x")), host="gpu-7", rank=0)
    assert message.endswith("ValueError (its traceback could not be made: RecursionError)")
