"""Count the mistakes of `recover --stale` and of `stall_after`, with real jobs on one SQLite store.

The jobs are forked from one process that has loaded MLflow, so that hundreds of them fit on a small machine. Each has a
context and a journal of its own.

- `stale`: of the jobs, one in ten is suspended by SIGSTOP for less than the limit, and as many more lose their machine:
  their agent and they get SIGKILL, and their state folder is removed. `autogen-team recover --stale` runs again and
  again. It must close the runs of the dead ones, and no others.
- `stall`: each job pauses for up to 0.8 of the limit between the things that count as progress. None may be alerted. A
  few more jobs pause for twice the limit, and each must be.
- `examples`: the same with the examples, run by `autogen-team run --stall-after`, two at a time. Each pauses for the
  limit before its first metric, and prints a line at least every 0.8 of the limit, also while it loads its libraries.
  An example that a busy machine has kept silent for longer than the limit, by the times of these lines and the end of
  its run, does not count.

`signs_of_life.py [stale|stall|examples] [JOBS]` runs one of them, or fewer jobs.
"""

from __future__ import annotations

import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import mlflow
import psutil

from autogen_team import GlobalContext
from autogen_team._ship.agent_link import NAME
from autogen_team._ship.signs import ALIVE_TAG
from autogen_team.io.services import AlertsService, LoggerService, MlflowService

HEARTBEAT, STALE = 10.0, 60
"""Seconds between heartbeats, and the limit of `recover --stale`."""
STALL, PAUSES, SHARE = 10.0, 6, 0.8
"""Seconds of silence that are alerted, the number of pauses of a job, and their longest share of that."""
SHARES = {"short": SHARE, "long": 2.0}
AT_ONCE = 25
"""Jobs that pause at the same time."""
EXAMPLES = ["train.py", "llm_traces.py", "grid_search_joblib.py", "grid_search_dask.py"]
"""The examples that end within seconds."""
STALL_OF_EXAMPLES = 8.0
"""Seconds of silence that are alerted in an example."""
PAUSING = """\
import atexit, os, random, runpy, sys, threading, time

pause, longest, times, example = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]

def say_something():
    os.write(1, b"a line\\n")
    with open(times, "a") as file:
        print(time.time(), file=file)

def say_something_often():
    while True:
        for share in (1.0, random.random()):
            say_something()
            time.sleep(longest * share)

def pausing(log):
    def log_later(*words, **options):
        global pause
        time.sleep(pause)
        pause = 0.0
        return log(*words, **options)
    return log_later

if longest:
    threading.Thread(target=say_something_often, daemon=True).start()
    atexit.register(say_something)  # the thread ends before the process
import mlflow
mlflow.log_metric, mlflow.log_metrics = pausing(mlflow.log_metric), pausing(mlflow.log_metrics)
runpy.run_path(example, run_name="__main__")
"""
"""A script that runs an example with a pause, and prints lines meanwhile at random times, unless the longest is 0."""


def context(uri: str, state: Path, **fields: object) -> GlobalContext:
    """Return the context of a job."""
    service = MlflowService(
        tracking_uri=uri, state_dir=state, autolog_disable=True, heartbeat=HEARTBEAT, snapshot=False
    )
    logger = LoggerService(sink=str(state / "job.log"))
    return GlobalContext(mlflow_service=service, logger_service=logger, alert_on="never", **fields)


def fork(work: Callable[[], object]) -> int:
    """Call this in a forked child, and return its process id."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def open_until_killed(uri: str, state: Path, name: str) -> None:
    """Keep a run open."""
    with context(uri, state) as job, job.run(name, log_system_metrics=False):
        mlflow.log_metric("loss", 1.0)
        signal.pause()


def stale(folder: Path, jobs: int) -> bool:
    """Count the runs of living, suspended and dead jobs that `recover --stale` closes."""
    uri, states = f"sqlite:///{folder}/mlflow.db", [folder / "state", folder / "lost"]
    few = max(1, jobs // 10)
    with context(uri, states[0]):
        pass  # makes the database
    client = mlflow.MlflowClient(uri)
    pids: dict[str, int] = {}
    try:
        for number in range(jobs + few):
            name = f"dead {number}" if number >= jobs else f"suspended {number}" if number < few else f"alive {number}"
            pids[name] = fork(partial(open_until_killed, uri, states[name.startswith("dead")], name))
            while number - len(_runs(client)) > 3:
                time.sleep(0.2)
        _wait(lambda: len(_runs(client)) == len(pids) and all(ALIVE_TAG in one.data.tags for one in _runs(client)))
        print(f"{len(pids)} jobs run; of {few} the machine is lost now, and {few} are suspended")
        for process in psutil.process_iter(["cmdline", "environ"]):
            command, variables = process.info["cmdline"] or [], process.info["environ"] or {}
            if NAME in command and str(states[1]) in " ".join(command) and variables.get("MLFLOW_TRACKING_URI") == uri:
                process.kill()
        for name, pid in pids.items():
            if name.startswith("dead"):
                os.kill(pid, signal.SIGKILL)
            elif name.startswith("suspended"):
                os.kill(pid, signal.SIGSTOP)
        shutil.rmtree(states[1])
        begun, suspended = time.monotonic(), True
        while time.monotonic() < begun + 2.5 * STALE:
            command = [sys.executable, "-m", "autogen_team", "recover", "--stale", f"{STALE}s"]
            subprocess.run(command, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, stdout=-1, stderr=-1, check=False)
            if suspended and time.monotonic() > begun + SHARE * STALE - HEARTBEAT:  # the last heartbeat may be older
                suspended = False
                for name, pid in pids.items():
                    if name.startswith("suspended"):
                        os.kill(pid, signal.SIGCONT)
        runs = client.search_runs(["1"], max_results=5000)
        closed = Counter(one.info.run_name.split()[0] for one in runs if one.info.status != "RUNNING")
        total = Counter(name.split()[0] for name in pids)
        for kind in ("alive", "suspended", "dead"):
            print(f"{kind}: {closed[kind]} of {total[kind]} closed")
        return closed == Counter({"dead": total["dead"]})
    finally:
        _end(pids.values())


def _runs(client: mlflow.MlflowClient) -> list[mlflow.entities.Run]:
    return list(client.search_runs(["1"], "attributes.status = 'RUNNING'", max_results=5000))


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the jobs have not started")
        time.sleep(0.5)


def _end(pids: Iterator[int]) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@contextmanager
def receiver() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the URL of a server for alerts, and the list of those that have come."""
    alerts: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            alerts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"json://127.0.0.1:{server.server_port}", alerts
        server.shutdown()


def pause_often(uri: str, state: Path, url: str, name: str, share: float) -> None:
    """Do one of the things that count after each pause; `share` is the longest one, as a share of the limit."""
    choice = random.Random(name)
    job = context(uri, state, stall_after=STALL, alerts_service=AlertsService(urls=url))
    with job, job.run(name, log_system_metrics=False):
        steps = [
            lambda: mlflow.log_metric("loss", 1.0),
            lambda: job.logger.info("a line"),
            lambda: job.log_metrics({"loss": 1.0}),
            job.progress,
        ]
        is_long = share > 1
        for number in range(1 if is_long else PAUSES):
            time.sleep(STALL * (share if is_long or number % 2 else choice.uniform(0, share)))
            choice.choice(steps)()


def stall(folder: Path, jobs: int) -> bool:
    """Count the jobs that are alerted for silence, of those with shorter and with longer pauses than the limit."""
    uri, state, few = f"sqlite:///{folder}/mlflow.db", folder / "state", max(1, jobs // 20)
    with context(uri, state):
        pass
    names = [f"short {number}" for number in range(jobs)] + [f"long {number}" for number in range(few)]
    with receiver() as (url, alerts):
        while names:
            some, names = names[:AT_ONCE], names[AT_ONCE:]
            pids = [fork(partial(pause_often, uri, state, url, one, SHARES[one.split()[0]])) for one in some]
            statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
            print(f"{len(pids)} jobs have ended, {sum(map(bool, statuses))} of them with a fault")
        deadline = time.monotonic() + 120  # each report loads MLflow
        while _alerted(alerts)["long"] < few and time.monotonic() < deadline:
            time.sleep(0.5)
        found = _alerted(alerts)
    print(f"pauses up to {SHARE} of the limit: {found['short']} of {jobs} jobs alerted")
    print(f"a pause of twice the limit: {found['long']} of {few} jobs alerted")
    return found == Counter({"long": few})


def run_example(folder: Path, url: str, name: str) -> int:
    """Run an example with a pause under the supervisor; return its exit status."""
    kind, number = name.split()
    example = Path(__file__).parents[1] / "examples" / EXAMPLES[int(number) % len(EXAMPLES)]
    numbers = {"short": (STALL_OF_EXAMPLES, STALL_OF_EXAMPLES * SHARE), "long": (STALL_OF_EXAMPLES * 2.0, 0.0)}[kind]
    command = [sys.executable, "-m", "autogen_team", "run", "--name", name, "--stall-after", f"{STALL_OF_EXAMPLES:g}s"]
    variables = {
        "AUTOGEN_TEAM_ALERTS_URLS": url,
        "AUTOGEN_TEAM_ALERT_ON": "never",
        "AUTOGEN_TEAM_STATE_DIR": str(folder / "state"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    ended = subprocess.run(
        [*command, str(folder / "pausing.py"), *map(str, numbers), str(folder / name), str(example)],
        env={**os.environ, **variables},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if ended.returncode:
        print(f"{name}: {example.name} has failed ({ended.returncode})\n{ended.stderr.decode()[-2000:]}")
    return ended.returncode


def examples(folder: Path, jobs: int) -> bool:
    """Count the examples that are alerted for silence, of those with shorter and with longer pauses than the limit."""
    (folder / "pausing.py").write_text(PAUSING)
    few = max(len(EXAMPLES), jobs // 20)
    names = [f"short {number}" for number in range(jobs)]
    for number in range(few):
        names.insert((number + 1) * len(names) // few, f"long {number}")
    with context(f"sqlite:///{folder}/mlflow.db", folder / "state"):
        pass
    late: set[str] = set()
    with receiver() as (url, alerts), ThreadPoolExecutor(2) as pool:
        faults = 0
        for name, status in zip(names, pool.map(partial(run_example, folder, url), names), strict=True):
            faults += bool(status)
            if not status and name.startswith("short") and _longest_silence(folder, name) > STALL_OF_EXAMPLES:
                late.add(name)
            found = _alerted([one for one in alerts if one["title"].removesuffix(": silent") not in late])
            print(f"{name} has ended; {faults} faults, {len(late)} late, alerted: {dict(found)}")
        deadline = time.monotonic() + 120
        while _alerted(alerts)["long"] < few and time.monotonic() < deadline:
            time.sleep(0.5)
        found = _alerted([one for one in alerts if one["title"].removesuffix(": silent") not in late])
    print(f"silent for up to {SHARE} of the limit: {found['short']} of {jobs - len(late)} examples alerted")
    print(f"silent for twice the limit: {found['long']} of {few} examples alerted")
    return not faults and found == Counter({"long": few})


def _longest_silence(folder: Path, name: str) -> float:
    """Return the most seconds between two lines of an example, or between its last line and its end."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs(["1"], f"attributes.run_name = '{name}'")
    times = [*map(float, (folder / name).read_text().split()), run.info.end_time / 1000]
    return max(after - before for before, after in pairwise(times))


def _alerted(alerts: list[dict[str, str]]) -> Counter[str]:
    return Counter(name.split()[0] for name in {one["title"] for one in alerts} if name.endswith(": silent"))


def main() -> int:
    """Run what the command line asks for."""
    words = sys.argv[1:]
    counts = {"stale": 200, "stall": 100, "examples": 100}
    jobs = next((int(word) for word in words if word.isdecimal()), None)
    is_right = True
    for what, count in counts.items():
        if what in words or not counts.keys() & set(words):
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # agents may still be at work
                is_right &= globals()[what](Path(folder), jobs or count)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())
