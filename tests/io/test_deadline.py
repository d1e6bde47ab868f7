"""Work with a deadline."""

from __future__ import annotations

import threading

import pytest

from autogen_team._process.deadline import within


def test_the_result_is_returned():
    """The result may be None."""
    assert within(60, lambda: 7, name="work") == 7
    assert within(60, lambda: None, name="work") is None


def test_an_exception_is_raised():
    """The same exception object is raised."""
    error = ValueError("x")

    def fail() -> None:
        raise error

    with pytest.raises(ValueError, match="x") as raised:
        within(60, fail, name="work")
    assert raised.value is error


def test_work_that_takes_too_long_is_abandoned():
    """Work that exceeds the deadline continues on a thread that does not keep the process alive."""
    done = threading.Event()

    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        within(0.1, done.wait, name="slow work")

    (thread,) = [thread for thread in threading.enumerate() if thread.name == "slow work"]
    assert thread.daemon
    done.set()
    thread.join()


def test_when_no_thread_can_be_started_it_is_done_at_once(monkeypatch):
    """If no thread can be started, as at interpreter exit, the work is done by the caller."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    assert within(0.1, lambda: 7, name="work") == 7
