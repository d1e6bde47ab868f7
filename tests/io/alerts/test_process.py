"""Alerts of processes that exit, fork, are interrupted, or never stop the service."""

import os
import signal
import time

import pytest

PRELUDE = """
import os, signal, sys, threading, time, warnings
warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # newer Pythons warn of a fork beside a thread
from autogen_team._alerts.delivery import Delivery
from autogen_team.io.services import AlertsService
def make(*urls, enable=True, flush_timeout=2.0, **options):
    return Delivery(AlertsService(enable=enable, app_name="test", urls=urls, flush_timeout=flush_timeout), **options)
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture
def run(run_script):
    """Return a function that runs code which creates deliveries with `make`."""
    return lambda code, *arguments, **environment: run_script(PRELUDE + code.format(*arguments), **environment)


def test_importing_the_engine_imports_no_channel(run):
    """jeepney, apprise and requests are imported when the first alert needs them."""
    script = run("make(); print([name for name in ('jeepney', 'apprise', 'requests') if name in sys.modules])")
    assert (script.stdout, script.stderr) == ("[]\n", "")


def test_a_job_that_never_stops_the_service_loses_nothing(run, endpoint):
    """The process waits at exit for alerts that are being delivered."""
    server = endpoint()
    script = run("alerts = make({0!r})\nfor n in range(5): alerts.notify(str(n), '')", server.url)
    assert [request["title"] for request in server.requests] == ["0", "1", "2", "3", "4"]
    assert (script.returncode, script.stdout, script.stderr) == (0, "", "")


def test_an_endpoint_that_drips_does_not_keep_the_process(run, endpoint):
    """The process exits within four seconds of its last line, and the alert is printed."""
    server = endpoint("drip")
    script = run("make({0!r}).notify('done', ''); print(time.monotonic())", server.url)
    over = time.monotonic()
    ended, line = script.stdout.splitlines()
    assert line == "[test] done: "
    assert over - float(ended) < 4
    assert len(server.requests) == 1


def test_a_daemon_that_hangs_does_not_keep_the_process(run, daemon):
    """A hanging desktop delays the process by one second, for the first alert."""
    running = daemon("hang")
    script = run("alerts = make()\nfor n in range(50): alerts.notify(str(n), '')\nprint(time.monotonic())")
    over = time.monotonic()
    *lines, ended = script.stdout.splitlines()
    assert lines == [f"[test] {number}: " for number in range(50)]
    assert over - float(ended) < 4
    assert [call["title"] for call in running.calls] == ["0"]


def test_a_headless_process_prints_its_alerts_and_no_more(run):
    """Nothing is printed on stderr, as a warning would be without a logging configuration."""
    script = run("alerts = make()\nfor n in range(3): alerts.notify(str(n), '')")
    assert (script.stdout, script.stderr) == ("[test] 0: \n[test] 1: \n[test] 2: \n", "")


@needs_fork
def test_parent_and_forked_child_both_notify(run, daemon):
    """The child opens its own connection, and the parent keeps its own."""
    running = daemon()
    script = run("""
alerts = make()
alerts.notify("parent", "before")
pid = os.fork()
if pid == 0:
    alerts.notify("child", "")
    alerts.stop()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
alerts.notify("parent", "after")
""")
    assert (script.returncode, script.stdout) == (0, "")
    assert [(call["title"], call["body"]) for call in running.calls] == [
        ("parent", "before"),
        ("child", ""),
        ("parent", "after"),
    ]
    assert len(running.connections) == 2


@needs_fork
def test_a_forked_child_does_not_deliver_the_queue_of_the_parent(run, endpoint):
    """An alert that is queued when the process forks is delivered once."""
    server = endpoint()
    script = run(
        """
import apprise
alerts = make({0!r}, flush_timeout=20)
for n in range(20):
    alerts.notify(str(n), "")
pid = os.fork()
if pid == 0:
    sys.exit()
os.waitpid(pid, 0)
""",
        server.url,
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "", "")
    assert [request["title"] for request in server.requests] == [str(number) for number in range(20)]


@needs_fork
def test_the_alerts_of_a_multiprocessing_child_arrive(run, endpoint):
    """The child delivers its queue before it exits by `os._exit`."""
    server = endpoint()
    script = run(
        """
import multiprocessing
alerts = make({0!r}, flush_timeout=20)
def work(number):
    alerts.notify(f"child {{number}}", "")
context = multiprocessing.get_context("fork")
children = [context.Process(target=work, args=(number,)) for number in range(2)]
for child in children: child.start()
for child in children: child.join()
alerts.notify("parent", "")
""",
        server.url,
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "", "")
    assert sorted(request["title"] for request in server.requests) == ["child 0", "child 1", "parent"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer signals")
def test_a_signal_handler_may_notify_in_the_middle_of_notify(run, daemon):
    """Handlers that interrupt `notify` anywhere cause no deadlock and lose no alert."""
    running = daemon()
    script = run(
        """
import faulthandler
faulthandler.dump_traceback_later(40, exit=True)
alerts = make()
interrupts = 0
def handler(*_):
    global interrupts
    interrupts += 1
    alerts.notify("signal", "")
    signal.setitimer(signal.ITIMER_REAL, 0.003)  # not earlier: on a busy machine handlers would fill the stack
alerts.notify("first", "")
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.003)
sent = 1
while interrupts < 50:
    alerts.notify("main", "")
    sent += 1
signal.setitimer(signal.ITIMER_REAL, 0)
alerts.stop()
print("COUNT", interrupts + sent)
""",
        covered=False,
    )
    assert script.returncode == 0, script.stderr
    *printed, count = script.stdout.splitlines()
    assert len(running.calls) + len(printed) >= int(count.removeprefix("COUNT "))


def test_ctrl_c_while_waiting_prints_the_alert(run):
    """An interrupt ends the wait at once, is raised, and the alert is printed."""
    script = run("""
class Desktop:
    name, is_local = "desktop", True
    def takes(self, level): return True
    def close(self): pass
    def deliver(self, alert):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait()
alerts = make(channels=[Desktop()])
try:
    alerts.notify("done", "model trained")
except KeyboardInterrupt:
    print("interrupted", flush=True)
""")
    assert script.stdout == "[test] done: model trained\ninterrupted\n"


def test_a_daemon_thread_may_notify_until_the_very_end(run):
    """A thread that alerts while the interpreter shuts down neither crashes nor delays it."""
    script = run("""
alerts = make()
ready = threading.Event()
def chatter():
    for number in range(10**9):
        alerts.notify("still", "here")
        if number == 10: ready.set()
threading.Thread(target=chatter, daemon=True).start()
ready.wait(20)
""")
    assert script.returncode == 0
    assert set(script.stdout.splitlines()) == {"[test] still: here"}
