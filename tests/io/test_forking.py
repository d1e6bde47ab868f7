"""State of a forked child."""

from __future__ import annotations

import os
import threading

import pytest

from autogen_team._process import forking
from autogen_team._ship import shipper

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def in_child(check) -> bool:
    """Fork, and return the result of `check` in the child."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if check() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def held():
    """Return a lock that another thread holds."""
    lock = forking.ForkSafeLock()
    has_it, is_over = threading.Event(), threading.Event()

    def hold():
        with lock:
            has_it.set()
            is_over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    assert has_it.wait(20)
    yield lock
    is_over.set()
    thread.join()


def takes(lock) -> bool:
    """Return whether another thread can take the lock soon."""
    taken = threading.Event()

    def take():
        with lock:
            taken.set()

    threading.Thread(target=take, daemon=True).start()
    return taken.wait(1.0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_lock_that_a_thread_of_the_parent_holds_is_free_in_the_child(held):
    """No thread in the child could ever release it."""
    assert not takes(held)
    assert in_child(lambda: takes(held))
    assert not takes(held)


def test_a_child_can_leave_a_block_that_its_parent_has_entered():
    """The child does not hold the lock that its parent took."""
    lock = forking.ForkSafeLock()

    def leave() -> bool:
        lock.__exit__()
        return takes(lock)

    with lock:
        assert in_child(leave)


def test_two_threads_may_fork_at_a_time(monkeypatch):
    """Each forking thread resumes only the shippers that it has paused."""
    monkeypatch.setattr(shipper, "_FORK_PATIENCE", 0.1)

    class Delivering:
        """The methods of a shipper that a fork uses."""

        def __init__(self):
            self.lock = threading.Lock()

        def pause(self, timeout):
            return self.lock.acquire(timeout=timeout)

        def resume(self):
            self.lock.release()

    one = Delivering()
    monkeypatch.setattr(shipper, "_shippers", {one})
    shipper._before_fork()
    other = threading.Thread(target=lambda: (shipper._before_fork(), shipper._after_fork_in_parent()))
    other.start()
    other.join()
    shipper._after_fork_in_parent()

    assert not one.lock.locked()
