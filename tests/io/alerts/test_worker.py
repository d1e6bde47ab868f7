"""The background worker's checklist: order, stop, fork, signals, garbage collection, no log storm."""

import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections import deque

import pytest

from autogen_team._alerts import worker as module
from autogen_team._alerts.worker import Worker

PATIENCE = 20.0  # seconds: generous, a bound on hangs and not a measurement


def run_script(code: str, *, covered: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter, where forks, signals and exits affect no other test.

    Use `covered=False` for signal handlers that wait for a thread: they sometimes deadlock on a lock of coverage.
    """
    environment = {name: value for name, value in os.environ.items() if covered or not name.startswith("COV")}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )


class Deliveries:
    """A delivery that takes items while its gate is open."""

    def __init__(self):
        self.items = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, item):
        """Take one item."""
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        self.items.append(item)


@pytest.fixture
def deliveries():
    """Return a delivery whose gate is opened after the test."""
    deliveries = Deliveries()
    yield deliveries
    deliveries.gate.set()


@pytest.fixture
def worker(deliveries):
    """Return a worker that uses this delivery."""
    worker = Worker(deliveries, name="test", capacity=10)
    yield worker
    deliveries.gate.set()
    worker.stop()


@pytest.fixture
def until_idle(wait_until):
    """Return a function that waits until a worker has delivered everything."""
    return lambda worker: wait_until(lambda: worker.is_idle)


def threads_named(name):
    """Return the threads of that name."""
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_no_thread_before_the_first_item():
    """A worker without items starts no thread."""
    before = threading.active_count()
    Worker(print, name="test", capacity=1)
    assert threading.active_count() == before


def test_items_arrive_in_order(worker, deliveries, until_idle):
    """Items of one thread are delivered in order."""
    assert all(worker.submit(number) for number in range(10))
    until_idle(worker)
    assert deliveries.items == list(range(10))


def test_the_thread_is_a_daemon_with_the_name_of_the_worker(deliveries):
    """The thread never keeps the process alive, and its name identifies it in a stack dump."""
    worker = Worker(deliveries, name="told apart", capacity=10)
    deliveries.gate.clear()
    worker.submit(1)
    [thread] = threads_named("told apart")
    assert thread.daemon


def test_a_worker_is_idle_until_it_has_something_to_do(worker, deliveries, until_idle):
    """Queued items and the item in progress both count."""
    assert worker.is_idle
    deliveries.gate.clear()
    worker.submit(1)
    assert not worker.is_idle
    assert deliveries.entered.wait(PATIENCE)
    assert not worker.is_idle
    deliveries.gate.set()
    until_idle(worker)


def test_an_item_beyond_the_capacity_is_refused(worker, deliveries, until_idle):
    """A full queue neither blocks nor grows; `submit` returns False."""
    deliveries.gate.clear()
    worker.submit(0)
    assert deliveries.entered.wait(PATIENCE)
    assert all(worker.submit(number) for number in range(1, 11))
    assert not worker.submit(11)
    deliveries.gate.set()
    until_idle(worker)
    assert deliveries.items == list(range(11))


def test_an_item_after_stop_is_refused(worker, deliveries):
    """A stopped worker accepts no items and starts no thread."""
    assert worker.stop()
    before = threading.active_count()
    assert not worker.submit(1)
    assert threading.active_count() == before
    assert deliveries.items == []


def test_stop_drops_the_queue_and_returns_whether_the_worker_was_idle(deliveries, wait_until):
    """`stop` does not wait; it returns whether the worker was idle. A delivery in progress is completed."""
    worker = Worker(deliveries, name="stopped", capacity=10)
    deliveries.gate.clear()
    for number in range(3):
        worker.submit(number)
    assert deliveries.entered.wait(PATIENCE)
    assert not worker.stop()
    deliveries.gate.set()
    wait_until(lambda: not threads_named("stopped"))
    assert deliveries.items == [0]
    assert worker.stop()


def test_a_failing_delivery_is_reported_once(caplog, until_idle):
    """A thousand failures log one line, and the thread continues."""
    tried = []

    def fail(item):
        tried.append(item)
        raise OSError("no route")

    worker = Worker(fail, name="test", capacity=1000)
    with caplog.at_level(logging.WARNING, logger="autogen_team"):
        assert all(worker.submit(number) for number in range(1000))
        until_idle(worker)
    assert [record.getMessage() for record in caplog.records] == ["test: could not deliver: OSError: no route"]
    assert tried == list(range(1000))


def test_a_new_failure_after_a_success_is_reported_again(caplog, until_idle):
    """Each outage is reported once."""

    def fail_when_odd(item):
        if item % 2:
            raise OSError("no route")

    worker = Worker(fail_when_odd, name="test", capacity=10)
    with caplog.at_level(logging.WARNING, logger="autogen_team"):
        for number in (1, 1, 2, 1):
            worker.submit(number)
        until_idle(worker)
    assert len(caplog.records) == 2


def test_a_delivery_that_exits_its_thread_loses_only_its_own_item(deliveries, until_idle):
    """SystemExit in a delivery is a failure of one item, not the end of the worker."""

    def exit_first(item):
        if item == 0:
            sys.exit(1)
        deliveries(item)

    worker = Worker(exit_first, name="test", capacity=10)
    worker.submit(0)
    worker.submit(1)
    until_idle(worker)
    assert deliveries.items == [1]


def test_an_idle_thread_ends_and_comes_back(deliveries, wait_until, monkeypatch):
    """A worker without items does not keep a sleeping thread."""
    monkeypatch.setattr(module, "IDLE", 0.02)
    worker = Worker(deliveries, name="comes-back", capacity=10)
    for number in range(3):
        worker.submit(number)
        wait_until(lambda: not threads_named("comes-back"))
    assert deliveries.items == [0, 1, 2]


def test_items_submitted_while_the_thread_becomes_idle_are_delivered(deliveries, until_idle, monkeypatch):
    """An item submitted just as the thread becomes idle is delivered."""
    monkeypatch.setattr(module, "IDLE", 0.0001)
    worker = Worker(deliveries, name="test", capacity=1000)
    for number in range(300):
        worker.submit(number)
        threading.Event().wait(0.0001)
    until_idle(worker)
    assert deliveries.items == list(range(300))


def test_an_unreferenced_worker_is_collected(deliveries, until_idle, wait_until, monkeypatch):
    """Neither the thread nor the fork hook keeps an unreferenced worker alive."""
    monkeypatch.setattr(module, "IDLE", 0.02)
    worker = Worker(deliveries, name="test", capacity=10)
    worker.submit(1)
    until_idle(worker)
    gone = weakref.ref(worker)
    del worker

    def collected():
        gc.collect()
        return gone() is None

    wait_until(collected)


def test_many_threads_lose_nothing(deliveries, until_idle):
    """All items of concurrent threads are delivered, in order per thread."""
    worker = Worker(deliveries, name="test", capacity=10_000)

    def submit(thread):
        for number in range(500):
            assert worker.submit((thread, number))

    threads = [threading.Thread(target=submit, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    until_idle(worker)
    for thread in range(8):
        assert [number for owner, number in deliveries.items if owner == thread] == list(range(500))


def test_without_a_new_thread_the_item_is_refused(worker, monkeypatch):
    """If no thread can be started, `submit` returns False, and the next item tries again."""

    def no_thread(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        assert not worker.submit(1)
    assert worker.submit(2)


@pytest.mark.parametrize("has_thread", [False, True])
def test_ctrl_c_while_the_thread_starts_loses_no_later_item(worker, deliveries, until_idle, monkeypatch, has_thread):
    """The interrupted item is not queued, and the next item gets a thread."""
    start = threading.Thread.start

    def interrupt(self):
        if has_thread:
            start(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            worker.submit(1)
    assert worker.submit(2)
    until_idle(worker)
    assert deliveries.items == [2]


def test_a_worker_is_not_idle_while_it_takes_an_item(worker, until_idle):
    """An item that has left the queue counts as in progress."""
    seen = []

    class Watched(deque):
        def popleft(self):
            item = super().popleft()
            seen.append(worker.is_idle)
            return item

    worker._queue = Watched()
    worker.submit(1)
    until_idle(worker)
    assert seen == [False]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_delivers_its_own_and_not_the_parents():
    """The child starts with an empty queue, a free lock and its own thread; the parent loses nothing."""
    script = run_script("""
        import os, threading, time, warnings
        from autogen_team._alerts.worker import Worker
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork beside a thread
        gate = threading.Event()
        def deliver(item):
            if os.getpid() == parent:
                gate.wait()
            os.write(1, f"{'parent' if os.getpid() == parent else 'child'} {item}\\n".encode())
        def finish():
            until = time.monotonic() + 20
            while not worker.is_idle and time.monotonic() < until:
                time.sleep(0.01)
            return worker.stop()
        parent = os.getpid()
        worker = Worker(deliver, name="test", capacity=10)
        worker.submit("before")
        worker.submit("queued")
        with worker._work:                  # as if another thread held the lock
            pid = os.fork()
            if pid == 0:
                worker.submit("after")
                os._exit(not finish())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        gate.set()
        worker.submit("last")
        assert finish()
    """)
    assert script.stderr == ""
    assert script.stdout.splitlines() == ["child after", "parent before", "parent queued", "parent last"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer signals")
def test_a_signal_handler_may_submit_while_its_own_thread_does():
    """A handler that interrupts `submit` causes no deadlock and loses no item."""
    script = run_script(
        """
        import faulthandler, signal, time
        from autogen_team._alerts.worker import Worker
        faulthandler.dump_traceback_later(30, exit=True)
        arrived = []
        worker = Worker(arrived.append, name="test", capacity=10**9)
        interrupts = 0
        def handler(*_):
            global interrupts
            interrupts += 1
            assert worker.submit("signal")
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        submitted = 0
        while interrupts < 300:
            assert worker.submit("main")
            submitted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        while not worker.is_idle:
            time.sleep(0.01)
        assert arrived.count("main") == submitted and arrived.count("signal") == interrupts
    """,
        covered=False,
    )
    assert (script.returncode, script.stderr) == (0, "")


def test_a_hanging_delivery_does_not_keep_the_process():
    """A process whose delivery never returns still exits."""
    script = run_script("""
        import threading
        from autogen_team._alerts.worker import Worker
        entered = threading.Event()
        def hang(item):
            entered.set()
            threading.Event().wait()
        worker = Worker(hang, name="test", capacity=10)
        worker.submit("for ever")
        assert entered.wait(20)
        print(worker.stop())
    """)
    assert script.returncode == 0
    assert script.stdout == "False\n"
