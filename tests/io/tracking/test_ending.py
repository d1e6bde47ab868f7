"""How exceptions and signals determine the status of a run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from contextlib import ExitStack

import pytest

from autogen_team._capture import signals


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, ("FINISHED", None)),
        (ValueError("bad shape"), ("FAILED", "ValueError: bad shape")),
        (ValueError(), ("FAILED", "ValueError")),
        (SystemExit(), ("FINISHED", None)),
        (SystemExit(0), ("FINISHED", None)),
        (SystemExit(3), ("FAILED", "exit status 3")),
        (SystemExit("no data"), ("FAILED", "exit: no data")),
        (KeyboardInterrupt(), ("KILLED", "SIGINT")),
        (asyncio.CancelledError(), ("KILLED", "CancelledError")),
        (GeneratorExit(), ("FINISHED", None)),
        (BaseException("odd"), ("FAILED", "BaseException: odd")),
        (signals.Terminated(signal.SIGTERM), ("KILLED", "SIGTERM")),
    ],
    ids=repr,
)
def test_each_end_has_its_status_and_reason(error, expected):
    """Each exception gives the status and the reason of the end of a run."""
    assert signals.verdict(error) == expected


def test_a_reason_is_bounded():
    """A message of a megabyte is cut before it becomes a tag."""
    _, reason = signals.verdict(ValueError("x" * 1_000_000))

    assert len(reason) == 500


def test_an_exception_that_cannot_be_shown_is_still_a_failure():
    """An exception whose `__str__` fails is still recorded."""

    class Broken(Exception):
        def __str__(self):
            raise RuntimeError

    assert signals.verdict(Broken()) == ("FAILED", "Broken: its message cannot be shown")


def test_sigterm_becomes_an_exception():
    """SIGTERM raises an exception in the job, with the exit status 143."""
    with pytest.raises(signals.Terminated) as raised, signals.signals_raise():
        signal.raise_signal(signal.SIGTERM)

    assert raised.value.code == 128 + signal.SIGTERM


def test_handlers_are_restored():
    """After the run, the handlers of SIGTERM and SIGHUP are those from before it."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)

    with signals.signals_raise():
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) != before

    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before


def test_signals_raise_until_the_last_service_has_stopped():
    """Signals raise until the last service has stopped, also if services stop in the order of their start."""
    before = signal.getsignal(signal.SIGTERM)
    first, second = ExitStack(), ExitStack()
    first.enter_context(signals.signals_raise())
    second.enter_context(signals.signals_raise())
    first.close()
    with pytest.raises(signals.Terminated):
        signal.raise_signal(signal.SIGTERM)

    second.close()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def handler_of_the_job():
    """Install a SIGTERM handler as a job would, and return the list of signals that it got."""
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    yield got
    signal.signal(signal.SIGTERM, before)


def test_the_handler_of_the_job_decides(handler_of_the_job):
    """If a job's own SIGTERM handler returns, the job continues."""
    with signals.signals_raise():
        signal.raise_signal(signal.SIGTERM)

    assert handler_of_the_job == [signal.SIGTERM]


def test_an_exit_after_a_handled_signal_is_a_kill(handler_of_the_job):
    """`sys.exit(0)` after a handled SIGTERM counts as KILLED, not as a normal end."""
    with signals.signals_raise():
        signal.raise_signal(signal.SIGTERM)

        assert signals.verdict(SystemExit(0)) == ("KILLED", "SIGTERM")


def test_a_handler_installed_meanwhile_stays(handler_of_the_job):
    """A handler that the job installs during the run stays installed after it."""
    with signals.signals_raise():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_an_exit_by_a_handler_installed_meanwhile_is_a_kill(handler_of_the_job):
    """An exit from a signal handler of the job is recognized by its traceback, and counts as KILLED."""

    def handle(number, frame):
        raise SystemExit(number)

    with pytest.raises(SystemExit) as raised, signals.signals_raise():
        signal.signal(signal.SIGTERM, handle)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, handle)  # as while the run is closed
    assert signals.verdict(raised.value) == ("KILLED", "SIGTERM")
    assert signals.verdict(SystemExit(15)) == ("FAILED", "exit status 15")


def test_an_ignored_signal_stays_ignored():
    """A signal that is ignored, as under `nohup`, stays ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.signals_raise():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("signum", "kind"), [(signal.SIGTERM, signals.Terminated), (signal.SIGINT, KeyboardInterrupt)], ids=str
)
def test_a_signal_waits_while_signals_are_held(signum, kind):
    """A signal does not interrupt the closing of a run, and is raised after it."""
    reached = []
    with pytest.raises(kind), signals.signals_raise():
        signals.hold()
        signal.raise_signal(signum)
        reached.append("the end of the closing")
        signals.release()

    assert reached == ["the end of the closing"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_waited_is_dropped_if_the_job_leaves_anyway():
    """A held signal is not raised if the job leaves by its own exception."""
    with signals.signals_raise():
        signals.hold()
        signal.raise_signal(signal.SIGTERM)
        signals.release(leaving=True)

        assert signals.fatal_signal() is signal.SIGTERM


def test_other_threads_do_not_hold_signals():
    """A thread that closes its run does not keep the main thread from being ended."""
    held, done = threading.Event(), threading.Event()

    def work() -> None:
        signals.hold()
        held.set()
        done.wait()
        signals.release()

    thread = threading.Thread(target=work)
    thread.start()
    held.wait()
    with pytest.raises(signals.Terminated), signals.signals_raise():
        signal.raise_signal(signal.SIGTERM)
    done.set()
    thread.join()


def test_threads_leave_handlers_alone():
    """Outside the main thread `signals_raise` installs no handlers, because Python does not allow it."""
    seen = []

    def work() -> None:
        with signals.signals_raise():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_handled_signal_does_not_end_the_job(handler_of_the_job):
    """A signal that a handler of the job has dealt with is not fatal; an exit after a SIGHUP is a normal end."""
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        with signals.signals_raise():
            signal.raise_signal(signal.SIGHUP)
            assert signals.verdict(SystemExit(0)) == ("FINISHED", None)
            signal.raise_signal(signal.SIGTERM)
            assert signals.fatal_signal() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_that_raises_ends_the_process():
    """A signal whose handler raises an exception is fatal to the process."""

    def leave(*_):
        sys.exit(3)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with signals.signals_raise():
            with pytest.raises(SystemExit):
                signal.raise_signal(signal.SIGTERM)
            assert signals.fatal_signal() is signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_child_forked_while_signals_are_held_receives_them():
    """A child that is forked while signals are held does not hold them itself."""
    signals.hold()
    child = os.fork()
    if child == 0:
        is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        try:
            with signals.signals_raise():
                signal.raise_signal(signal.SIGTERM)
        except signals.Terminated:
            os._exit(0 if is_default else 2)
        os._exit(1)
    signals.release()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
