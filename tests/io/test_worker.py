"""The background worker, by the checklist for any of its kind: triggers, flush, stop, fork, garbage, no log storm."""

import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest

from autogen_team.io._worker import Worker

PATIENCE = 20.0  # seconds: generous, a bound on hangs and not a measure


def run_script(code: str, *, covered: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `code` in an interpreter of its own, where forks, signals and exits are nobody else's.

    Signal handlers that wait for a thread deadlock on coverage's own lock, once in a while: not `covered`, then.
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
    """Take batches, once the gate is open."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, batch):
        """Take one batch."""
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        self.batches.append(batch)

    @property
    def items(self):
        """What arrived, in order."""
        return [item for batch in self.batches for item in batch]


@pytest.fixture
def deliveries():
    """Return a delivery that is never left behind a closed gate."""
    deliveries = Deliveries()
    yield deliveries
    deliveries.gate.set()


@pytest.fixture
def worker(deliveries):
    """Return a worker that delivers items one by one."""
    worker = Worker(deliveries, name="test", capacity=10)
    yield worker
    deliveries.gate.set()
    worker.stop(PATIENCE)


def test_no_thread_before_the_first_item():
    """A worker without items costs no thread."""
    before = threading.active_count()
    Worker(print, name="test", capacity=1)
    assert threading.active_count() == before


def test_items_arrive_in_order(worker, deliveries):
    """What one thread submits arrives in that order."""
    assert all(worker.submit(number) for number in range(10))
    assert worker.flush(PATIENCE)
    assert deliveries.items == list(range(10))


def test_the_thread_is_a_daemon_with_the_name_of_the_worker(worker, deliveries):
    """The thread never keeps the process alive and can be told apart in a stack dump."""
    deliveries.gate.clear()
    worker.submit(1)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "test"]
    assert thread.daemon


def test_a_full_batch_goes_out_at_once(deliveries, wait_until):
    """The size trigger does not wait for the interval."""
    worker = Worker(deliveries, name="test", capacity=10, batch=3, interval=3600)
    for number in range(4):
        worker.submit(number)
    wait_until(lambda: deliveries.batches == [[0, 1, 2]])
    assert worker.stop(PATIENCE) == []
    assert deliveries.batches == [[0, 1, 2], [3]]


def test_a_partial_batch_goes_out_after_the_interval(deliveries, wait_until):
    """The time trigger does not wait for the size."""
    worker = Worker(deliveries, name="test", capacity=10, batch=3, interval=0.05)
    worker.submit(1)
    worker.submit(2)
    wait_until(lambda: deliveries.batches == [[1, 2]])


def test_flush_does_not_wait_for_the_interval(deliveries):
    """Flush sends a partial batch now."""
    worker = Worker(deliveries, name="test", capacity=10, batch=3, interval=3600)
    worker.submit(1)
    assert worker.flush(PATIENCE)
    assert deliveries.batches == [[1]]


def test_flush_of_an_idle_worker_is_immediate(worker):
    """There is nothing to wait for when nothing was submitted."""
    assert worker.flush(0.0)
    assert worker.is_idle


def test_flush_gives_up_after_its_timeout(worker, deliveries):
    """A delivery that hangs bounds nobody but itself."""
    deliveries.gate.clear()
    worker.submit(1)
    assert not worker.flush(0.05)
    assert not worker.is_idle


def test_a_flush_from_the_workers_own_thread_does_not_wait_for_itself():
    """A delivery that flushes its own worker is told that it is not over, at once."""
    answers = []
    worker = Worker(lambda batch: answers.append(worker.flush(3600)), name="test", capacity=10)
    worker.submit(1)
    assert worker.stop(PATIENCE) == []
    assert answers == [False]


def test_an_item_beyond_the_capacity_is_refused_and_counted(worker, deliveries):
    """A full queue neither blocks nor grows: the caller is told."""
    deliveries.gate.clear()
    worker.submit(0)
    assert deliveries.entered.wait(PATIENCE)
    assert all(worker.submit(number) for number in range(1, 11))
    assert not worker.submit(11)
    assert worker.refused == 1
    deliveries.gate.set()
    assert worker.stop(PATIENCE) == []
    assert deliveries.items == list(range(11))


def test_an_item_after_stop_is_refused_and_counted(worker, deliveries):
    """A stopped worker takes nothing and starts no thread."""
    worker.stop(PATIENCE)
    assert not worker.submit(1)
    assert worker.refused == 1
    assert deliveries.items == []


def test_stop_delivers_what_waits(worker, deliveries):
    """Stop drains the queue when there is time."""
    for number in range(10):
        worker.submit(number)
    assert worker.stop(PATIENCE) == []
    assert deliveries.items == list(range(10))


def test_stop_returns_what_was_not_delivered_in_time(worker, deliveries):
    """Stop is bounded, and gives back the batch under way and the queue behind it, in order."""
    deliveries.gate.clear()
    for number in range(3):
        worker.submit(number)
    assert deliveries.entered.wait(PATIENCE)
    assert worker.stop(0.05) == [0, 1, 2]


def test_a_second_stop_returns_nothing(worker, deliveries):
    """What was handed back once is not handed back again."""
    deliveries.gate.clear()
    worker.submit(1)
    worker.stop(0.0)
    assert worker.stop(0.0) == []
    assert worker.flush(0.0)


def test_what_stop_gave_up_on_does_not_confuse_the_count(worker, deliveries, wait_until):
    """A batch that ends after stop gave up on it is not counted twice."""
    deliveries.gate.clear()
    worker.submit(1)
    assert deliveries.entered.wait(PATIENCE)
    assert worker.stop(0.0) == [1]
    deliveries.gate.set()
    wait_until(lambda: "test" not in {thread.name for thread in threading.enumerate()})
    assert worker.flush(0.0)


def test_a_failing_delivery_is_reported_once_and_counted(caplog):
    """A thousand failures make one line of log, and the thread lives on."""

    def fail(batch):
        raise OSError("no route")

    worker = Worker(fail, name="test", capacity=1000)
    with caplog.at_level(logging.WARNING, logger="autogen_team"):
        assert all(worker.submit(number) for number in range(1000))
        assert worker.stop(PATIENCE) == []
    assert [record.getMessage() for record in caplog.records] == ["test: could not deliver: OSError: no route"]
    assert worker.failed == 1000


def test_a_new_failure_after_a_success_is_reported_again(caplog):
    """One report stands for one outage."""

    def fail_when_odd(batch):
        if batch[0] % 2:
            raise OSError("no route")

    worker = Worker(fail_when_odd, name="test", capacity=10)
    with caplog.at_level(logging.WARNING, logger="autogen_team"):
        for number in (1, 1, 2, 1):
            worker.submit(number)
        worker.stop(PATIENCE)
    assert len(caplog.records) == 2


def test_a_delivery_that_exits_its_thread_loses_only_its_own_batch(deliveries):
    """SystemExit in a delivery is one more failure, not the end of the worker."""

    def exit_first(batch):
        if batch == [0]:
            sys.exit(1)
        deliveries(batch)

    worker = Worker(exit_first, name="test", capacity=10)
    worker.submit(0)
    worker.submit(1)
    assert worker.stop(PATIENCE) == []
    assert deliveries.items == [1]


def test_an_idle_thread_ends_and_comes_back(deliveries, wait_until):
    """A long job does not keep a sleeping thread for two alerts a week."""
    worker = Worker(deliveries, name="comes-back", capacity=10, idle=0.02)
    for number in range(3):
        worker.submit(number)
        wait_until(lambda: "comes-back" not in {thread.name for thread in threading.enumerate()})
    assert deliveries.items == [0, 1, 2]


def test_items_on_the_edge_of_idleness_are_not_left_behind(deliveries):
    """An item submitted just as the thread goes idle still finds a thread."""
    worker = Worker(deliveries, name="test", capacity=1000, idle=0.0001)
    for number in range(300):
        worker.submit(number)
        threading.Event().wait(0.0001)
    assert worker.flush(PATIENCE)
    assert deliveries.items == list(range(300))


def test_a_forgotten_worker_is_collected(deliveries, wait_until):
    """Neither the thread nor the fork hook keeps a worker alive that nobody holds."""
    worker = Worker(deliveries, name="test", capacity=10, idle=0.02)
    worker.submit(1)
    assert worker.flush(PATIENCE)
    gone = weakref.ref(worker)
    del worker

    def collected():
        gc.collect()
        return gone() is None

    wait_until(collected)


def test_many_threads_lose_nothing(deliveries):
    """Items of concurrent threads all arrive, each thread's in its order."""
    worker = Worker(deliveries, name="test", capacity=10_000, batch=7, interval=0.001)

    def submit(thread):
        for number in range(500):
            assert worker.submit((thread, number))

    threads = [threading.Thread(target=submit, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert worker.stop(PATIENCE) == []
    for thread in range(8):
        assert [number for owner, number in deliveries.items if owner == thread] == list(range(500))


def test_no_thread_to_be_had_is_a_refusal(worker, monkeypatch):
    """When the system gives no thread the caller is told, and the next item tries again."""

    def no_thread(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        assert not worker.submit(1)
    assert worker.refused == 1
    assert worker.submit(2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_delivers_its_own_and_not_the_parents():
    """The child starts with an empty queue, a free lock and a thread of its own; the parent loses nothing."""
    script = run_script("""
        import os, threading, warnings
        from autogen_team.io._worker import Worker
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside a thread
        gate = threading.Event()
        def deliver(batch):
            if os.getpid() == parent:
                gate.wait()
            os.write(1, f"{'parent' if os.getpid() == parent else 'child'} {batch[0]}\\n".encode())
        parent = os.getpid()
        worker = Worker(deliver, name="test", capacity=10)
        worker.submit("before")
        worker.submit("queued")
        with worker._lock:                  # as if another thread were in the middle of it
            pid = os.fork()
            if pid == 0:
                worker.submit("after")
                os._exit(len(worker.stop(20)))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        gate.set()
        worker.submit("last")
        assert worker.stop(20) == []
    """)
    assert script.stderr == ""
    assert script.stdout.splitlines() == ["child after", "parent before", "parent queued", "parent last"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer signals")
def test_a_signal_handler_may_submit_while_its_own_thread_does():
    """A handler that interrupts submit in the middle neither deadlocks nor loses an item."""
    script = run_script(
        """
        import faulthandler, signal, time
        from autogen_team.io._worker import Worker
        faulthandler.dump_traceback_later(30, exit=True)
        arrived = []
        worker = Worker(arrived.extend, name="test", capacity=10**9, batch=50, interval=0.001)
        interrupts = 0
        def handler(*_):
            global interrupts
            interrupts += 1
            assert worker.submit("signal")
            worker.flush(0.0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        submitted = 0
        while interrupts < 300:
            assert worker.submit("main")
            submitted += 1
            if submitted % 100 == 0:
                assert worker.flush(20)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert worker.stop(20) == []
        assert arrived.count("main") == submitted and arrived.count("signal") == interrupts
    """,
        covered=False,
    )
    assert (script.returncode, script.stderr) == (0, "")


def test_stop_at_exit_delivers_what_waits():
    """A stop registered for interpreter exit still has its thread."""
    script = run_script("""
        import atexit
        from autogen_team.io._worker import Worker
        worker = Worker(lambda batch: print(*batch, flush=True), name="test", capacity=10)
        atexit.register(worker.stop, 20)
        atexit.register(worker.submit, "at exit")
        worker.submit("before")
    """)
    assert (script.stdout.splitlines(), script.stderr) == (["before", "at exit"], "")


def test_a_hanging_delivery_does_not_keep_the_process():
    """A process whose delivery never returns exits all the same."""
    script = run_script("""
        import threading
        from autogen_team.io._worker import Worker
        worker = Worker(lambda batch: threading.Event().wait(), name="test", capacity=10)
        worker.submit("for ever")
        print(worker.stop(0.1))
    """)
    assert (script.returncode, script.stdout) == (0, "['for ever']\n")
