"""Jobs that die suddenly: their runs are closed as KILLED, and everything they had acknowledged is in the store."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from autogen_team._capture import lifecycle
from autogen_team._process import run_events
from autogen_team._ship import recovery
from autogen_team._spool import index, journal

KILLS = 50
SOON = 120.0
"""Time limit of the agent in seconds; on an idle machine it needs less than five."""

JOB = """
import os, signal, sys, time, mlflow
from autogen_team import GlobalContext
with GlobalContext() as context:
    with context.run("victim", log_system_metrics=False) as run:
        print("run", run.info.run_id, flush=True)
        for n in range(10**9):
            mlflow.log_metric("loss", n, step=n)
            context.log_metrics({"lane": n}, n)
            if n % 10 == 0:
                mlflow.log_param(f"p{n}", n)
                context.logger.info("line {}", n)
                print("acknowledged", n, flush=True)
            BODY
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return the state folder of the jobs of this test."""
    return tmp_path / "state"


@pytest.fixture
def start_job(start_python, store_uri, monkeypatch):
    """Return a function that starts a job, and returns its process and the id of its run."""
    monkeypatch.setenv("AUTOGEN_TEAM_MLFLOW_AUTOLOG_DISABLE", "true")

    def start(body: str = "time.sleep(0.001)", **environment):
        process = start_python("-c", JOB.replace("BODY", body), **environment)
        return process, process.wait_for("run ").split()[1]

    return start


def are_recovered(state: Path) -> bool:
    """Return whether no journal is left; the empty folder of an unused journal does not count."""
    return index.find(state) == []


def test_a_killed_job_is_recovered_by_the_agent(start_job, store_uri, state, wait_until):
    """The agent closes the run of a killed job, and delivers every acknowledged item, the reason and the log."""
    process, run_id = start_job()
    process.wait_for("acknowledged 200")
    process.send(signal.SIGKILL)
    acknowledged = last_acknowledged(process, at_least=200)
    wait_until(lambda: are_recovered(state), timeout=SOON)

    client = mlflow.MlflowClient(store_uri)
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.info.end_time >= run.info.start_time
    assert run.data.tags[run_events.EXCEPTION_TAG].startswith(f"process {process.popen.pid} on ")
    for key in ("loss", "lane"):
        steps = [metric.step for metric in client.get_metric_history(run_id, key)]
        assert steps == list(range(len(steps)))
        assert len(steps) > acknowledged
    assert {f"p{n}" for n in range(0, acknowledged + 1, 10)} <= run.data.params.keys()
    (log,) = client.list_artifacts(run_id, "logs")
    lines = Path(client.download_artifacts(run_id, log.path)).read_text()
    assert f"line {acknowledged}" in lines


def last_acknowledged(process, at_least: int) -> int:
    """Return the last number that the job has acknowledged."""
    _, out, _ = process.finish()
    return max([at_least, *(int(line.split()[1]) for line in out.splitlines() if line.startswith("acknowledged "))])


@pytest.mark.parametrize(
    "body", ["os._exit(0)", "os.abort()", "signal.raise_signal(signal.SIGKILL)", "import ctypes; ctypes.string_at(0)"]
)
def test_every_sudden_end_is_recorded(start_job, store_uri, state, wait_until, body):
    """A job that ends by a hard exit, an abort, SIGKILL or a native crash is closed as KILLED, with all its metrics."""
    process, run_id = start_job(f"if n == 30: {body}")
    process.finish()
    wait_until(lambda: are_recovered(state), timeout=SOON)

    client = mlflow.MlflowClient(store_uri)
    assert client.get_run(run_id).info.status == "KILLED"
    assert len(client.get_metric_history(run_id, "loss")) == 31


MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


@pytest.mark.skipif(not os.access(MEMORY_GROUPS / "tasks", os.W_OK), reason="memory cannot be limited on this machine")
def test_a_kill_by_the_kernel_for_lack_of_memory_is_recorded(start_job, store_uri, state, wait_until):
    """A job that the kernel kills for lack of memory is closed as KILLED."""
    group = MEMORY_GROUPS / f"autogen-team-{os.getpid()}"
    process, run_id = start_job(
        "if n == 30: print('hungry', flush=True); sys.stdin.readline(); hog = b'x' * 10**9", stdin=subprocess.PIPE
    )
    process.wait_for("hungry")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("50M")
        (group / "cgroup.procs").write_text(str(process.popen.pid))
        status, _, _ = process.finish("go\n")
    finally:
        group.rmdir()
    wait_until(lambda: are_recovered(state), timeout=SOON)

    assert status == -signal.SIGKILL
    assert mlflow.MlflowClient(store_uri).get_run(run_id).info.status == "KILLED"


def test_a_zombie_is_recovered_as_dead(start_job, state, wait_until):
    """A job that is a zombie, because its parent has not waited for it, is recovered as dead."""
    process, _ = start_job("if n == 30: os.kill(os.getpid(), 9)", fresh=True)  # a fork server would wait for it

    wait_until(lambda: are_recovered(state), timeout=SOON)
    assert process.popen.returncode is None  # its parent has not waited for it yet


def test_a_forked_child_that_lives_on_does_not_hide_the_death(start_job, store_uri, state, wait_until):
    """The death of a job is noticed although a forked child of it lives on."""
    process, run_id = start_job(
        "if n == 30:\n"
        "                child = os.fork()\n"
        "                if child == 0: time.sleep(600)\n"
        "                print('child', child, flush=True)\n"
        "            if n == 40: os.kill(os.getpid(), 9)"
    )
    child = int(process.wait_for("child ").split()[1])
    try:
        wait_until(lambda: mlflow.MlflowClient(store_uri).get_run(run_id).info.status == "KILLED", timeout=SOON)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_job_that_ends_normally_leaves_no_agent(run_python, store_uri, state, fresh_agents):
    """The agent ends after its last job has closed its run and its service."""
    code = (
        "from autogen_team.io.services import MlflowService\n"
        "import os, psutil, time\n"
        "service = MlflowService(autolog_disable=True)\n"
        "def agents():\n"
        "    lines = [process.info['cmdline'] or [] for process in psutil.process_iter(['cmdline'])]\n"
        "    state = os.environ['AUTOGEN_TEAM_STATE_DIR']\n"
        "    return sum('autogen-team-agent' in line and any(state in word for word in line) for line in lines)\n"
        "with service, service.run_context(service.RunConfig(name='x')): print(agents())\n"
        "deadline = time.monotonic() + 30\n"
        "while agents() and time.monotonic() < deadline: time.sleep(0.05)\n"
        "print(agents())"
    )
    status, out, err = run_python("-c", code)

    assert (status, out) == (0, "1\n0\n"), err
    assert are_recovered(state)


UNWATCHED = "from autogen_team._ship import agent_link; agent_link.AgentLink.watch = lambda *_: None\n"
"""The job dies together with the agent, as with the machine."""


@pytest.fixture
def kill_unwatched(start_python, store_uri, monkeypatch):
    """Return a function that kills a job without an agent, and returns its process and its run's id."""
    monkeypatch.setenv("AUTOGEN_TEAM_MLFLOW_AUTOLOG_DISABLE", "true")

    def kill():
        process = start_python("-c", UNWATCHED + JOB.replace("BODY", "time.sleep(0.001)"))
        run_id = process.wait_for("run ").split()[1]
        process.wait_for("acknowledged 50")
        process.send(signal.SIGKILL)
        process.finish()
        return process, run_id

    return kill


def test_a_dry_run_of_recover_changes_nothing(kill_unwatched, store_uri, state, run_python):
    """`recover --dry-run` names the run, the process and the evidence; `recover` then closes the run once."""
    process, run_id = kill_unwatched()

    status, out, err = run_python("-m", "autogen_team", "recover", "--dry-run")
    assert status == 0, err
    (line,) = [line for line in out.splitlines() if "victim" in line]
    assert f"there is no process {process.popen.pid}" in line
    assert "close 1 as KILLED" in line
    assert mlflow.MlflowClient(store_uri).get_run(run_id).info.status == "RUNNING"

    status, out, err = run_python("-m", "autogen_team", "recover", "--json")
    assert status == 0, err
    (result,) = json.loads(out)
    assert (result["closed"], result["problem"]) == ([run_id], "")
    assert mlflow.MlflowClient(store_uri).get_run(run_id).info.status == "KILLED"

    assert run_python("-m", "autogen_team", "recover", "--json")[:2] == (0, "[]\n")
    assert are_recovered(state)


def test_the_end_of_a_recovered_run_is_its_last_entry(kill_unwatched, store_uri, run_python, wait_until):
    """The end time of a recovered run is that of its last entry, not that of the recovery."""
    _, run_id = kill_unwatched()
    died = time.time()
    wait_until(lambda: time.time() > died + 1.5)
    run_python("-m", "autogen_team", "recover")

    assert mlflow.MlflowClient(store_uri).get_run(run_id).info.end_time <= (died + 1) * 1000


def test_a_living_process_is_never_touched(start_job, store_uri, state, run_python):
    """Recovery refuses the journal of a living process, whose run continues."""
    process, run_id = start_job()
    process.wait_for("acknowledged 50")

    (found,) = index.find(state)
    assert (found.state, found.evidence) == ("alive", f"process {process.popen.pid} runs")
    assert json.loads(run_python("-m", "autogen_team", "recover", "--json")[1]) == []
    uri = store_uri
    assert recovery.recover(found, uri, uri, state).problem.startswith("its process is alive")
    process.send(signal.SIGTERM)
    process.finish()
    assert mlflow.MlflowClient(store_uri).get_run(run_id).data.tags[run_events.EXCEPTION_TAG] == "SIGTERM"


def test_a_search_for_the_dead_does_not_read_living_journals(start_job, state, monkeypatch):
    """A search for the dead does not read living journals: 200 workers would do that 40,000 times."""
    process, _ = start_job()
    process.wait_for("acknowledged 50")
    read = []
    monkeypatch.setattr(index, "look", lambda folder, _: read.append(folder))

    assert index.find(state, held=False) == []
    assert read == []
    process.send(signal.SIGKILL)
    process.popen.wait(SOON)


def test_two_processes_can_recover_the_same_journal(kill_unwatched, store_uri, state):
    """Recovery reports a journal that another process has removed in the meantime."""
    kill_unwatched()
    (found,) = index.find(state)
    assert index.find(state, held=False) == [found]

    assert recovery.recover(found, store_uri, store_uri, state).problem == ""
    assert recovery.recover(found, store_uri, store_uri, state).problem == "another process has removed it"


@pytest.fixture
def take_over(start_python):
    """Return a function that starts a process that takes over a journal, and returns that process."""

    def take(folder: Path):
        code = (
            "import sys; from pathlib import Path; from autogen_team._spool import journal\n"
            f"print(journal.take_over(Path({str(folder)!r})) is not None, flush=True); sys.stdin.read()"
        )
        process = start_python("-c", code, stdin=subprocess.PIPE)
        process.wait_for("True")
        return process

    return take


def test_recover_waits_for_another_recovery(kill_unwatched, take_over, store_uri, state, run_python, start_python):
    """`recover` waits while another process recovers a journal, and takes over when that process ends early."""
    kill_unwatched()
    (found,) = index.find(state)
    other = take_over(found.folder)
    assert [one.state for one in index.find(state)] == ["recovering"]
    assert index.find(state, held=False) == []
    assert " recovering " in run_python("-m", "autogen_team", "status")[1]
    assert recovery.recover(found, store_uri, store_uri, state).problem == "another process is recovering it"
    waiting = start_python("-m", "autogen_team", "recover", "--json")
    evidence = f"process {other.popen.pid} on {socket.gethostname()} is recovering it; waiting for it"
    assert evidence in waiting.popen.stderr.readline()

    other.finish("")
    status, out, _ = waiting.finish()
    assert (status, [(one["problem"], one["by_others"]) for one in json.loads(out)]) == (0, [("", False)])
    assert are_recovered(state)


def test_a_journal_that_the_agent_has_recovered_is_no_problem(kill_unwatched, take_over, store_uri, state):
    """A journal that the agent has recovered in the meantime is not reported as a problem."""
    kill_unwatched()
    (found,) = index.find(state)
    other = take_over(found.folder)
    (found,) = index.find(state)
    journal.remove(found.folder)
    other.finish("")

    result = recovery.recover_or_wait(found, store_uri, store_uri, state, ())
    assert (result.by_others, result.problem) == (True, "")


def test_the_agent_waits_for_another_recovery(kill_unwatched, take_over, store_uri, state, monkeypatch):
    """The agent waits while another process recovers the journal, and recovers it when that process gives up."""
    kill_unwatched()
    (found,) = index.find(state)
    other = take_over(found.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.setattr(recovery, "_PAUSE", 0.05)
    agent = threading.Thread(target=recovery.after_death, args=[[str(found.folder)]])
    agent.start()
    agent.join(3.0)  # longer than an agent waits for a dying process
    assert agent.is_alive()

    other.finish("")
    agent.join(SOON)
    assert are_recovered(state)


def test_a_journal_without_entries_is_removed(start_job, state):
    """`sweep` removes an old journal without entries, but not a new one or that of a living process."""
    process, _ = start_job()
    process.wait_for("acknowledged 50")
    [living] = journal.folder_of(state).iterdir()
    stillborn, new = living.with_name("host-1-abc"), living.with_name("host-2-def")
    for folder in (stillborn, new):
        folder.mkdir()
        (folder / "lock").touch()
        (folder / "1.jsonl").write_bytes(bytes(4096))
    for folder in (stillborn, living):
        os.utime(folder, (0, 0))

    index.sweep(state)

    assert set(journal.folder_of(state).iterdir()) == {living, new}
    process.send(signal.SIGKILL)
    process.popen.wait(SOON)


def test_the_rest_of_a_stopped_service_is_delivered_while_its_process_lives(server, start_session, tmp_path):
    """A journal left by a stopped service is dead and can be recovered, although its process lives."""
    started = start_session(server.uri, flush_timeout=0.2)
    with lifecycle.open_run(name="train") as run:
        server.kill()
        mlflow.log_metric("loss", 1.0)
    started.stop()
    (found,) = index.find(tmp_path / "state")
    assert (found.state, "ended normally" in found.evidence) == ("dead", True)
    server.start()
    assert recovery.recover(found, server.uri, server.uri, tmp_path / "state").problem == ""

    stored = server.client().get_run(run.info.run_id)
    assert (stored.data.metrics, stored.info.status) == ({"loss": 1.0}, "FINISHED")


@pytest.mark.parametrize("gone", ["deleted", "for good"])
def test_the_journal_of_a_deleted_run_is_removed(kill_unwatched, store_uri, state, gone):
    """The journal of a deleted run is removed by recovery."""
    _, run_id = kill_unwatched()
    client = mlflow.MlflowClient(store_uri)
    client.delete_run(run_id)
    if gone == "for good":
        client._tracking_client.store._hard_delete_run(run_id)
    (found,) = index.find(state)

    assert recovery.recover(found, store_uri, store_uri, state).problem == ""
    assert are_recovered(state)


def test_the_next_start_recovers(kill_unwatched, start_job, store_uri, wait_until):
    """The next start of a job recovers the journals of dead jobs."""
    _, run_id = kill_unwatched()
    started, _ = start_job()

    wait_until(lambda: mlflow.MlflowClient(store_uri).get_run(run_id).info.status == "KILLED", timeout=SOON)
    started.send(signal.SIGTERM)
    started.finish()


def test_a_run_that_was_being_created_is_found_by_its_tag(start_python, store_uri, run_python):
    """A run is closed although its process died after creating it and before the journal noted its id."""
    code = UNWATCHED + (
        "import os; from autogen_team._spool.journal import Journal\n"
        "Journal.run_opened = lambda *_, **__: os.kill(os.getpid(), 9)\n"
    )
    start_python("-c", code + JOB.replace("BODY", "")).finish()
    client = mlflow.MlflowClient(store_uri)
    assert [run.info.status for run in client.search_runs(["1"])] == ["RUNNING"]
    run_python("-m", "autogen_team", "recover")

    assert [run.info.status for run in client.search_runs(["1"])] == ["KILLED"]


FIFTY = """
import itertools, os, sys, time, mlflow
from autogen_team.io.services import MlflowService
import autogen_team._capture.session, autogen_team._capture.write_behind, mlflow.store.tracking.sqlalchemy_store

def job(writer):
    service = MlflowService(autolog_disable=True)
    service.start()
    while True:
        with service.run_context(service.RunConfig(name="victim", log_system_metrics=False)) as run:
            for n in range(150):
                mlflow.log_metric("loss", n * 0.5, step=n)
                if n % 10 == 0:
                    mlflow.log_param(f"p{n}", n)
                os.write(writer, f"{run.info.run_id} {n}\\n".encode())

# Modules are loaded once and the job is forked, because fifty imports of MLflow would take longest.
for line in sys.stdin:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        job(writer)
    os.close(writer)
    acknowledged = {}
    with os.fdopen(reader) as heard:
        first = heard.readline()
        deadline = time.monotonic() + float(line)
        for words in itertools.chain([first], iter(heard.readline, "")):
            if words.endswith("\\n"):
                run_id, n = words.split()
                acknowledged[run_id] = int(n)
            if time.monotonic() > deadline:
                os.kill(child, 9)
                deadline = float("inf")
    os.waitpid(child, 0)
    for run_id, n in acknowledged.items():
        print(run_id, n)
"""


def test_fifty_kills_at_random_moments(start_python, store_uri, state, run_python):
    """Every acknowledged item is in the store after recovery, once, and no run is left RUNNING."""
    delays = [random.uniform(0, 0.4) for _ in range(KILLS)]
    process = start_python("-c", UNWATCHED + FIFTY, stdin=subprocess.PIPE)
    status, out, err = process.finish("".join(f"{delay}\n" for delay in delays), timeout=500.0)
    assert status == 0, err
    acknowledged = {run_id: int(n) for run_id, n in map(str.split, out.splitlines())}
    assert len(acknowledged) >= KILLS
    status, out, err = run_python("-m", "autogen_team", "recover", "--json")
    assert status == 0, err + out

    client = mlflow.MlflowClient(store_uri)
    ends = [run.info.status for run in client.search_runs(["1"], max_results=1000)]
    assert set(ends) <= {"KILLED", "FINISHED"}
    assert ends.count("KILLED") > KILLS // 2  # the others were between two runs
    with closing(sqlite3.connect(store_uri.partition(":///")[2])) as database:
        for run_id, last in acknowledged.items():
            query = "select step from metrics where run_uuid = ? order by step"
            steps = [step for (step,) in database.execute(query, (run_id,))]
            assert steps == list(range(len(steps)))
            assert len(steps) > last
            params = {key for (key,) in database.execute("select key from params where run_uuid = ?", (run_id,))}
            assert {f"p{n}" for n in range(0, last + 1, 10)} <= params
    assert are_recovered(state)
