"""Uncaught exceptions are in the log; earlier hooks are called and restored."""

from __future__ import annotations

import gc
import logging
import sys
import threading

import pytest


class Owner:
    """An object whose finalizer fails."""

    def __del__(self):
        raise ValueError("in a finalizer")


def run_thread(target, name="loader"):
    """Run a thread until it ends."""
    thread = threading.Thread(target=target, name=name)
    thread.start()
    thread.join()


def raise_value_error():
    """Raise ValueError."""
    raise ValueError("in a thread")


@pytest.fixture
def quiet():
    """Install hooks of the job, and return the list of their calls."""
    before = sys.excepthook, threading.excepthook, sys.unraisablehook
    seen = []
    sys.excepthook = lambda *args: seen.append(args[0])
    threading.excepthook = sys.unraisablehook = lambda args: seen.append(args.exc_type)
    yield seen
    sys.excepthook, threading.excepthook, sys.unraisablehook = before


def test_an_uncaught_exception_is_in_the_log(run_python, script, tmp_path):
    """The log has the traceback, and the process ends with its usual status."""
    code = script('raise ValueError("wrong")', sink=str(tmp_path / "job.log"), uncaught=True)
    status, _, err = run_python(code)
    text = (tmp_path / "job.log").read_text()
    assert status == 1
    assert text.startswith("CRITICAL|uncaught exception\n")
    assert "ValueError: wrong" in text
    assert "ValueError: wrong" in err


def test_on_stderr_the_traceback_is_shown_once(run_python, script):
    """The traceback is masked, which the interpreter's own hook would not do."""
    secret = "correct-" + "horse-battery"
    body = f"raise ValueError({secret!r})"
    status, _, err = run_python(script(body, uncaught=True, redact=True), DEPLOY_TOKEN=secret)
    assert status == 1
    assert err.count("Traceback (most recent call last):") == 1
    assert secret not in err


def test_ctrl_c_is_not_a_failure(run_python, script, tmp_path):
    """Neither Ctrl-C nor `sys.exit` is logged."""
    for body, expected in (("raise KeyboardInterrupt", -2), ("raise SystemExit(3)", 3)):
        path = tmp_path / f"{expected}.log"
        status, _, _ = run_python(script(body, sink=str(path), uncaught=True))
        assert (status, path.read_text()) == (expected, "")


def test_a_failing_thread_is_in_the_log(quiet, start, capsys):
    """The line has the thread's name, and the earlier hook is called."""
    start(uncaught=True)
    run_thread(raise_value_error)
    err = capsys.readouterr().err
    assert err.startswith("ERROR|uncaught exception in loader\n")
    assert "ValueError: in a thread" in err
    assert quiet == [ValueError]


def test_a_thread_that_exits_is_not_logged(quiet, start, capsys):
    """`sys.exit` ends a thread silently."""
    start(uncaught=True)
    run_thread(lambda: sys.exit(1))
    assert capsys.readouterr().err == ""
    assert quiet == [SystemExit]


def test_a_failing_finalizer_is_in_the_log(quiet, start, capsys):
    """An exception in a finalizer cannot be raised to a caller."""
    gc.collect()  # objects of earlier tests may have failing finalizers
    start(uncaught=True)
    owner = Owner()
    del owner
    gc.collect()
    err = capsys.readouterr().err
    assert "ERROR|" in err
    assert "Owner.__del__" in err
    assert "ValueError: in a finalizer" in err
    assert quiet == [ValueError]


def test_an_exception_in_the_main_thread_calls_the_hook_before_ours(quiet, start, capsys):
    """The earlier hook is called for any exception."""
    start(uncaught=True)
    for error in (ValueError("wrong"), KeyboardInterrupt()):
        sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err.count("CRITICAL|uncaught exception") == 1
    assert quiet == [ValueError, KeyboardInterrupt]


def test_hooks_installed_after_ours_stay(quiet, start):
    """`stop` restores only hooks that are still ours; ours, if still called, call the earlier ones."""
    stop = start(uncaught=True)
    ours = sys.excepthook, threading.excepthook, sys.unraisablehook
    theirs = [lambda *_: None for _ in ours]
    sys.excepthook, threading.excepthook, sys.unraisablehook = theirs
    stop()
    assert [sys.excepthook, threading.excepthook, sys.unraisablehook] == theirs
    error = ValueError("late")
    ours[0](ValueError, error, None)
    ours[1](threading.ExceptHookArgs((ValueError, error, None, None)))
    assert quiet == [ValueError, ValueError]


def test_hooks_are_not_doubled(quiet, start, capsys):
    """With two services, each logs an exception once, and the earlier hook is called once."""
    start(uncaught=True)
    start(uncaught=True, sink="stdout")
    run_thread(raise_value_error)
    captured = capsys.readouterr()
    assert (captured.err.count("ERROR|"), captured.out.count("ERROR|")) == (1, 1)
    assert quiet == [ValueError]


@pytest.mark.parametrize("intercept", [True, False])
def test_a_failing_task_is_in_the_log_once(run_python, script, intercept):
    """The failure of a task that is never awaited is logged once, with and without interception of libraries."""
    body = """
import asyncio, gc
async def fail():
    raise ValueError("in a task")
async def job():
    asyncio.ensure_future(fail())
    await asyncio.sleep(0.01)
    gc.collect()
asyncio.run(job())
"""
    status, _, err = run_python(script(body, uncaught=True, intercept=intercept))
    assert status == 0
    assert err.count("ERROR|Task exception was never retrieved") == 1
    assert err.count("ValueError: in a task") == 1


def test_a_sink_that_raises_does_not_hide_the_exception(run_python, script):
    """With `catch=False`, the earlier hook is still called."""
    body = 'sys.stderr.close()\nsys.stderr = open(2, "w", closefd=False)\nraise ValueError("wrong")'
    status, _, err = run_python(script(body, uncaught=True, catch=False, sink="/dev/full"))
    assert status == 1
    assert "ValueError: wrong" in err


def test_an_object_without_a_name_is_named(quiet, start, capsys):
    """If the object's repr fails, the hook does not."""

    class Unshowable:
        def __repr__(self):
            raise RuntimeError("no repr")

    class Args:
        exc_type, exc_value, exc_traceback, err_msg, object = ValueError, ValueError("x"), None, None, Unshowable()

    start(uncaught=True)
    sys.unraisablehook(Args())
    assert "ERROR|exception ignored in: a Unshowable" in capsys.readouterr().err


def test_a_traceback_is_printed_without_any_handlers(run_python, script):
    """A script that has removed all handlers still prints its traceback."""
    status, _, err = run_python(script('logger.remove()\nraise ValueError("wrong")', uncaught=True))
    assert status == 1
    assert err.count("ValueError: wrong") == 1


def test_asyncio_is_forwarded_once_by_two_services(start, capsys):
    """Two services log asyncio's errors once, if only one intercepts libraries, in any order."""
    for order in ([True, False], [False, True]):
        stops = [start(uncaught=True, intercept=intercept) for intercept in order]
        logging.getLogger("asyncio").error("Task exception was never retrieved")
        for stop in stops:
            stop()
        assert capsys.readouterr().err == "ERROR|Task exception was never retrieved\n"
