"""Threads that do not keep the process alive."""

from __future__ import annotations

import threading

from autogen_team._process.threads import spawn


def test_the_work_is_done_on_a_daemon_thread_of_that_name():
    """The interpreter does not wait for a daemon thread at exit."""
    found = []
    thread = spawn(lambda: found.append(threading.current_thread()), name="helper")
    thread.join()

    assert found == [thread]
    assert (thread.name, thread.daemon) == ("helper", True)


def test_none_is_returned_if_no_thread_can_be_started(monkeypatch):
    """If no thread can be started, None is returned, and the caller does the work."""

    def fail(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)

    assert spawn(print, name="helper") is None
