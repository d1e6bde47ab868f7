"""A supervised script behaves as in plain Python, up to interpreter exit."""

from __future__ import annotations

import signal

import pytest

MAIN = """
import atexit, multiprocessing, os, signal, sys, threading, time, mlflow
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
"""
ENDS = {
    "a thread that watches the main thread": """
def watch():
    while threading.main_thread().is_alive():
        time.sleep(0.05)
    mlflow.log_metric("late", 1)
threading.Thread(target=watch).start()
""",
    "a thread that joins the main thread": """
def watch():
    threading.main_thread().join()
    mlflow.log_metric("late", 1)
threading.Thread(target=watch).start()
""",
    "a thread that a library ends when the main thread has ended": """
told = threading.Event()
threading._register_atexit(told.set)
def work():
    told.wait()
    mlflow.log_metric("late", 1)
threading.Thread(target=work).start()
""",
    "a task that submits another one too late": """
pool = ThreadPoolExecutor(2)
def work():
    time.sleep(0.3)
    try:
        pool.submit(print, "never")
    except RuntimeError:  # Python accepts no more after the main thread has ended
        mlflow.log_metric("late", 1)
pool.submit(work)
""",
    "what is called after a task": """
pool = ThreadPoolExecutor(1)
pool.submit(time.sleep, 0.3).add_done_callback(lambda _: (time.sleep(0.2), mlflow.log_metric("late", 1)))
""",
    "tasks that a shutdown cancels": """
pool = ThreadPoolExecutor(1)
pool.submit(lambda: (time.sleep(0.3), mlflow.log_metric("late", 1)))
pool.submit(print, "never")
pool.shutdown(wait=False, cancel_futures=True)
""",
    "joblib": """
import joblib
assert joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-n) for n in range(2)) == [0, 1]
mlflow.log_metric("late", 1)
""",
    "an exit handler": """
atexit.register(mlflow.log_metric, "late", 1)
""",
    "an exit handler beside others": """
@atexit.register
def last():
    mlflow.log_metric("late", 1)
atexit.register(mlflow.log_metric, "never", 1)
atexit.unregister(mlflow.log_metric)
@atexit.register
def fails():
    raise SystemExit(3)
""",
    "an exit handler of a forked child": """
owner = os.getpid()
@atexit.register
def once():
    if os.getpid() == owner:
        mlflow.log_metric("late", 1)
    else:
        open("child", "x").close()
if not os.fork():
    threading.Thread(target=lambda: threading.main_thread().join()).start()
    sys.exit(0)
os.wait()
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("body", ENDS.values(), ids=ENDS)
def test_what_a_script_does_after_its_last_line_is_in_its_run(supervised, script, the_run, body):
    """The script ends as in plain Python, and the run has all that it logged until then."""
    ended = supervised("--no-system-metrics", script(MAIN + body))

    assert ended.returncode == 0, ended.stderr
    run = the_run()
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"late": 1.0}), ended.stderr


def test_a_failing_exit_handler_is_reported_and_changes_nothing(supervised, script, the_run):
    """The error is printed as by Python."""
    ended = supervised(script("import atexit\n@atexit.register\ndef summary(): raise ValueError('no data')"))

    assert ended.returncode == 0
    assert b"Exception ignored in atexit callback: <function summary" in ended.stderr
    assert b"ValueError: no data" in ended.stderr
    assert the_run().info.status == "FINISHED"


def test_a_script_keeps_its_own_compiler_flags(supervised, script):
    """Annotations are objects, unless the script imports `annotations` from `__future__`."""
    ended = supervised(script("def work(epochs: int): ...\nprint(work.__annotations__['epochs']('5') + 1)"))

    assert (ended.returncode, ended.stdout.strip()) == (0, b"6"), ended.stderr


SPAWNED = """
import multiprocessing
from dataclasses import dataclass

@dataclass
class Score:
    value: float

def work(queue):
    queue.put(Score(0.5))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=work, args=(queue,))
    worker.start()
    print(queue.get(timeout=60))
    worker.join()
"""


@pytest.mark.slow
@pytest.mark.parametrize("words", [["job.py"], ["-m", "job"]], ids=["script", "module"])
def test_a_spawned_worker_can_return_an_object_of_the_script_s_class(supervised, script, words):
    """The worker's objects refer to the class in the module `__mp_main__`."""
    script(SPAWNED)

    ended = supervised("--no-system-metrics", *words)

    assert (ended.returncode, ended.stdout.strip()) == (0, b"Score(value=0.5)"), ended.stderr


@pytest.mark.parametrize(
    ("words", "status", "recorded"),
    [
        (["job.py"], 137, "KILLED"),
        (["--", "sh", "-c", "exit 3"], 3, "FAILED"),
    ],
)
def test_a_launcher_that_ignores_sigchld_hides_no_failure(supervised, script, the_run, words, status, recorded):
    """The kernel keeps no exit status of children of a process that ignores SIGCHLD, and children inherit that."""
    script("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")

    ended = supervised(*words, preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))

    assert (ended.returncode, the_run().info.status) == (status, recorded), ended.stderr
