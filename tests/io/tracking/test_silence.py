"""`stall_after`: a job that neither logs nor prints for too long is alerted, with the stacks of all its threads."""

from __future__ import annotations

import faulthandler
import http.server
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import psutil
import pytest

from autogen_team import GlobalContext
from autogen_team._process import activity, identity
from autogen_team._process.run_events import EXCEPTION_TAG
from autogen_team._services import stall_report
from autogen_team._ship import agent_link, watched
from autogen_team._ship.silence import Event, Silence
from autogen_team._ship.watched import Limits
from autogen_team._spool import journal
from autogen_team.errors import ConfigurationError
from autogen_team.io.services import AlertsService, MlflowService

pytestmark = [
    pytest.mark.usefixtures("forked_children"),
    pytest.mark.timeout(400),  # the reporting process imports MLflow again
]

JOB = """
import ctypes, os, signal, sys, threading, time, mlflow
from autogen_team import GlobalContext
from autogen_team._capture import write_behind
from autogen_team.io.services import AlertsService, MlflowService
write_behind._HANDOVER_TO_DATABASE = 0.0
if "NO_AGENT" in os.environ:
    from autogen_team._ship import agent_link
    agent_link._AGENT = "import sys; sys.exit(1)"
service = MlflowService(autolog_disable=True, heartbeat=0.5)
alerts = AlertsService(urls=sys.argv[1])  # a secret that is not in the environment

def wait_for_a_lock():
    lock = threading.Lock()
    lock.acquire()
    threading.Thread(target=release_when_told, args=(lock,), daemon=True).start()
    lock.acquire()

def release_when_told(lock):
    sys.stdin.readline()
    lock.release()

def hold_the_interpreter():
    ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)

def sleep():
    time.sleep(600)

with GlobalContext(mlflow_service=service, alerts_service=alerts, alert_on="never", stall_after=3,
                   stall_kill=os.environ.get("KILLS") == "1") as context:
    with context.run("train", log_system_metrics=False) as run:
        print("run", run.info.run_id, flush=True)
        globals()[sys.argv[2]]()
        print("goes on", flush=True)
        deadline = time.monotonic() + 300
        while not os.path.exists("done") and time.monotonic() < deadline:
            mlflow.log_metric("loss", 1.0)
            time.sleep(0.05)
"""


@pytest.fixture
def receiver():
    """Return an alert server with received alerts in `alerts` and its Apprise URL in `url`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Accept an alert."""
            self.server.alerts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.alerts = []
        server.url = f"json://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def start_job(start_python, store_uri, receiver):
    """Return a function that starts a job that hangs in the given way; it returns process and run id."""

    def start(how: str, **environment: str):
        job = start_python("-c", JOB, receiver.url, how, stdin=-1, MLFLOW_TRACKING_URI=store_uri, **environment)
        return job, job.wait_for("run ").split()[1]

    return start


@pytest.fixture
def stacks_of(store_uri, wait_until):
    """Return a function that waits for stacks with this text among a run's artifacts, and returns them."""

    def read(run_id: str, text: str) -> str:
        client = mlflow.MlflowClient(store_uri)
        found: dict[str, str] = {}

        def is_there() -> bool:  # on a busy machine a job may be silent earlier
            for one in client.list_artifacts(run_id, "stalls"):
                if one.path not in found:
                    found[one.path] = Path(client.download_artifacts(run_id, one.path)).read_text()
            return any(text in stacks for stacks in found.values())

        wait_until(is_there)
        return next(stacks for stacks in found.values() if text in stacks)

    return read


@pytest.mark.parametrize("how", ["wait_for_a_lock", "hold_the_interpreter"])
def test_a_job_that_hangs_is_alerted(start_job, receiver, stacks_of, wait_until, how):
    """The alert has the stacks of all threads; another alert says that the job moves again."""

    def alerts(title: str, text: str) -> list[dict[str, str]]:
        return [one for one in receiver.alerts if one["title"] == title and text in one["message"]]

    job, run_id = start_job(how)
    stacks = stacks_of(run_id, f"in {how}")
    wait_until(lambda: alerts("train: silent", f"in {how}"))
    job.popen.stdin.write("\n")
    job.popen.stdin.flush()
    job.wait_for("goes on")
    wait_until(lambda: alerts("train: moves again", run_id))
    Path("done").touch()
    status, _, err = job.finish()

    assert status == 0, err
    assert "Current thread" in stacks
    assert stacks.count("Thread 0x") + stacks.count("Current thread") > 1
    silent = alerts("train: silent", f"in {how}")[0]
    assert silent["type"] == "warning"
    assert run_id in silent["message"]
    assert f"stacks of all threads: stalls/{identity.process_name(job.popen.pid)}-" in silent["message"]
    assert alerts("train: moves again", run_id)[0]["type"] == "success"


def test_a_job_without_an_agent_watches_itself(start_job, receiver, stacks_of, wait_until):
    """With the same alerts, stacks and words."""
    job, run_id = start_job("wait_for_a_lock", NO_AGENT="1")
    assert "Current thread" in stacks_of(run_id, "in wait_for_a_lock")
    job.popen.stdin.write("\n")
    job.popen.stdin.flush()
    job.wait_for("goes on")
    wait_until(lambda: [one for one in receiver.alerts if one["title"] == "train: moves again"])
    Path("done").touch()
    status, _, err = job.finish()

    assert status == 0, err
    assert "the agent could not be started" in err
    assert "nothing was logged or printed for" in err
    assert [one for one in receiver.alerts if "in wait_for_a_lock" in one["message"]]


def test_the_warning_about_a_silence_does_not_end_it(start_job, stacks_of, receiver):
    """The warning in the job's own log does not count as activity."""
    job, run_id = start_job("sleep")
    said = ""
    while "nothing was logged or printed for" not in said:
        said = job.popen.stderr.readline()
        assert said
    assert "in sleep" in stacks_of(run_id, "in sleep")
    job.send(signal.SIGTERM)
    job.finish()

    assert {one["title"] for one in receiver.alerts} <= {"train: silent"}


def test_a_silent_job_is_killed_on_request(start_job, store_uri, wait_until):
    """The job is killed even if it holds the interpreter lock, and the run records the reason."""
    job, run_id = start_job("hold_the_interpreter", KILLS="1", AUTOGEN_TEAM_GRACE="1")

    assert job.popen.wait(300) == -signal.SIGKILL
    client = mlflow.MlflowClient(store_uri)
    wait_until(lambda: client.get_run(run_id).info.status != "RUNNING")
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags[EXCEPTION_TAG].startswith("silent for ")


POOL = """
import multiprocessing, os, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
from autogen_team import GlobalContext
from autogen_team.io.services import MlflowService

def hang_in_worker(number):
    print("waits", flush=True)
    time.sleep(600)

def move_until_told(context):
    while not os.path.exists("go"):
        context.progress()
        time.sleep(0.1)
    context.progress()

if __name__ == "__main__":
    method = multiprocessing.get_context(sys.argv[1])
    service = MlflowService(autolog_disable=True)
    with GlobalContext(mlflow_service=service, alert_on="never", stall_after=3) as context:
        with context.run("train", log_system_metrics=False) as run:
            print("run", run.info.run_id, flush=True)
            threading.Thread(target=move_until_told, args=(context,), daemon=True).start()
            with ProcessPoolExecutor(2, method) as pool:
                list(pool.map(context.bind(hang_in_worker), range(2)))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_stacks_of_workers_are_in_the_same_alert(start_python, store_uri, receiver, wait_until, method):
    """The alert has each process's name and stacks; workers need not have logged anything."""
    Path("pool.py").write_text(POOL)
    environment = {"MLFLOW_TRACKING_URI": store_uri, "AUTOGEN_TEAM_ALERTS_URLS": receiver.url}
    job = start_python("pool.py", method, **environment)
    run_id = job.wait_for("run ").split()[1]
    for _ in range(2):
        job.wait_for("waits")
    Path("go").touch()
    wait_until(lambda: [one for one in receiver.alerts if one["message"].count("in hang_in_worker") == 2])
    message = receiver.alerts[-1]["message"]

    assert message.count("worker ") == 2
    assert "pool.py, line" in message
    (name,) = re.findall(r"stalls/\S+", message)
    stacks = Path(mlflow.MlflowClient(store_uri).download_artifacts(run_id, name)).read_text()
    assert stacks.count("in hang_in_worker") == 2


RANK = """
import os, sys, time, mlflow
from autogen_team import GlobalContext
from autogen_team._capture import write_behind
from autogen_team.io.services import MlflowService
from autogen_team.workers import ranks
write_behind._HANDOVER_TO_DATABASE = 0.0
service = MlflowService(autolog_disable=True, heartbeat=0.5)

def wait_in_rank_0():
    time.sleep(600)

def wait_in_rank_1():
    time.sleep(600)

with GlobalContext(mlflow_service=service, alert_on="never", stall_after=3) as context:
    with ranks.run(context, "train", log_system_metrics=False) as run:
        print("run", run.info.run_id, flush=True)
        globals()[f"wait_in_rank_{os.environ['RANK']}"]()
"""


def test_the_ranks_of_other_machines_are_in_the_same_alert(start_python, store_uri, receiver, wait_until, tmp_path):
    """Each with its machine, here one with a state folder and an agent of its own; none of them has logged anything."""
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    environment = {**address, "MLFLOW_TRACKING_URI": store_uri, "AUTOGEN_TEAM_ALERTS_URLS": receiver.url}
    first = start_python("-c", RANK, RANK="0", **environment)
    run_id = first.wait_for("run ").split()[1]
    second = start_python("-c", RANK, RANK="1", AUTOGEN_TEAM_STATE_DIR=str(tmp_path / "away"), **environment)
    assert second.wait_for("run ").split()[1] == run_id
    told = re.compile(r"rank 0, process \d+: .* in wait_in_rank_0", re.DOTALL), re.compile(r"in wait_in_rank_1")
    wait_until(lambda: [one for one in receiver.alerts if all(words.search(one["message"]) for words in told)])

    assert {one["title"] for one in receiver.alerts} == {"train: silent"}
    assert f"rank 1, process {second.popen.pid} on " in receiver.alerts[-1]["message"]
    assert "autogen_team.silent" not in mlflow.MlflowClient(store_uri).get_run(run_id).data.tags


@pytest.mark.parametrize("script", ["print('ready', flush=True)", "import mlflow; mlflow.log_metric('a', 1)"])
def test_a_supervised_job_is_watched(start_python, store_uri, receiver, wait_until, script):
    """Output and logged items count as activity; without our libraries in the script there are no stacks."""
    Path("job.py").write_text(
        f"import sys\n{script}\nsys.stdin.readline()\nprint('on', flush=True)\nsys.stdin.readline()\n"
    )
    environment = {"MLFLOW_TRACKING_URI": store_uri, "AUTOGEN_TEAM_ALERTS_URLS": receiver.url}
    words = ["-m", "autogen_team", "run", "--stall-after", "3s", "--alert-on", "never", "job.py"]
    job = start_python(*words, stdin=-1, fresh=True, **environment)
    told = "job.py, line 3 in <module>" if "mlflow" in script else "no process of the job has loaded"
    wait_until(lambda: [one for one in receiver.alerts if told in one["message"]])
    count = len(receiver.alerts)
    job.popen.stdin.write("\n")
    job.popen.stdin.flush()
    job.wait_for("on")
    wait_until(lambda: "job.py: moves again" in [one["title"] for one in receiver.alerts[count:]])
    status, _, err = job.finish("\n")

    assert status == 0, err
    titles = [one["title"] for one in receiver.alerts]
    assert titles == (["job.py: silent", "job.py: moves again"] * len(titles))[: len(titles)]  # as it happened


def test_a_supervised_job_that_has_ended_is_not_silent(start_python, start_job, store_uri, receiver, wait_until):
    """A slow reader of its output keeps its run open; another job, which hangs later, is alerted and goes on."""

    def count(title: str) -> int:
        return [one["title"] for one in receiver.alerts].count(title)

    Path("job.py").write_text("import os\nprint('job', os.getpid(), flush=True)\ninput()\nprint('x' * 100_000)\n")
    environment = {"MLFLOW_TRACKING_URI": store_uri, "AUTOGEN_TEAM_ALERTS_URLS": receiver.url}
    words = ["-m", "autogen_team", "run", "--stall-after", "3s", "--alert-on", "never", "job.py"]
    job = start_python(*words, stdin=-1, fresh=True, **environment)
    pid = int(job.wait_for("job ").split()[1])
    wait_until(lambda: count("job.py: silent"))
    job.popen.stdin.write("\n")
    job.popen.stdin.flush()
    wait_until(lambda: not psutil.pid_exists(pid) and count("job.py: silent") == count("job.py: moves again"))
    before = count("job.py: silent")
    other, _ = start_job("wait_for_a_lock")
    wait_until(lambda: count("train: silent"))
    other.popen.stdin.write("\n")
    other.popen.stdin.flush()
    wait_until(lambda: count("train: moves again"))
    assert job.popen.poll() is None
    assert count("job.py: silent") == before

    Path("done").touch()
    assert other.finish()[0] == 0
    assert job.finish()[0] == 0


class Watched:
    """Watched processes, with a clock set by the test."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        self.folder = folder
        self.silence = Silence(folder)
        patch.setattr("autogen_team._ship.silence.time.monotonic", lambda: self.now)

    def add(self, pid: int, *, owns: bool = True, after: float = 10.0) -> Path:
        """Watch a process; return its folder."""
        folder = watched.folder_of(self.folder) / str(pid)
        folder.mkdir(parents=True)
        facts = watched.Facts(
            pid=pid,
            started=journal.started_at(pid),
            job=pid,
            who="" if owns else "rank 1",
            signal=0,
            run="a",
            name="train",
            owns=owns,
            after=after,
            kills=False,
            grace=10.0,
            folder=str(folder),
        )
        (folder / watched.PROCESS).write_text(json.dumps(watched.asdict(facts)))
        self.set(folder, self.now)
        assert self.after(0.0) == []
        return folder

    def set(self, folder: Path, moved: float, quiet_until: float = 0.0) -> None:
        """Set the times of a process's last activity and announced pause."""
        (folder / watched.CLOCK).write_bytes(activity._FORM.pack(moved, quiet_until))

    def after(self, seconds: float) -> list[Event]:
        """Advance the clock, and return the events."""
        self.now += seconds
        return list(self.silence.look())


@pytest.fixture
def at(tmp_path, monkeypatch) -> Watched:
    """Return watched processes."""
    return Watched(tmp_path / "agent", monkeypatch)


@pytest.fixture
def sleeper():
    """Return a process that sleeps."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; print(1, flush=True); time.sleep(600)"], stdout=-1
    ) as process:
        process.stdout.read(1)
        yield process
        process.kill()


def kinds(events: list[Event]) -> list[tuple[str, int, float]]:
    """Return the kind, number and duration of each event."""
    return [(one.kind, one.number, round(one.lasted, 3)) for one in events]


def test_pauses_below_the_limit_are_not_a_silence(at, sleeper):
    """Pauses of 0.8 of the limit, a hundred times, cause no alert."""
    folder = at.add(sleeper.pid)
    for _ in range(100):
        assert at.after(8.0) == []
        at.set(folder, at.now)


def test_each_silence_and_its_end_are_reported_once(at, sleeper):
    """Both alerts have the duration; the next silence is counted separately."""
    folder = at.add(sleeper.pid)
    assert at.after(9.0) == []
    assert kinds(at.after(2.0)) == [("silent", 1, 11.0)]
    assert at.after(5.0) == []
    assert kinds(at.after(5.0)) == [("over", 1, 21.0)]
    assert at.after(100.0) == []
    at.set(folder, at.now)
    assert kinds(at.after(0.0)) == [("moving", 1, 121.0)]
    assert kinds(at.after(11.0)) == [("silent", 2, 11.0)]


def test_an_announced_pause_is_not_a_silence(at, sleeper):
    """An announced pause is not reported before its end."""
    folder = at.add(sleeper.pid)
    at.set(folder, at.now, at.now + 40.0)
    assert at.after(39.0) == []
    assert kinds(at.after(2.0)) == [("silent", 1, 41.0)]


def test_one_process_that_moves_is_enough(at, sleeper):
    """One rank's activity counts for all processes."""
    at.add(sleeper.pid)
    folder = at.add(identity.job(), owns=False)
    at.now += 9.0
    at.set(folder, at.now)
    assert at.after(2.0) == []
    (event,) = at.after(9.0)
    assert len(event.processes) == 2


def test_what_an_ended_process_did_last_counts(at, sleeper):
    """The others have the whole limit from its last activity, for example when a pool of workers has ended."""
    at.add(sleeper.pid)
    folder = at.add(identity.job(), owns=False)
    at.now += 9.0
    at.set(folder, at.now)
    assert at.after(0.0) == []
    shutil.rmtree(folder)
    assert at.after(9.0) == []
    assert kinds(at.after(2.0)) == [("silent", 1, 11.0)]


def test_a_job_that_is_suspended_is_not_silent(at, sleeper, wait_until):
    """After it continues, the job has the whole limit again."""
    at.add(sleeper.pid)
    assert at.after(9.0) == []
    sleeper.send_signal(signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert at.after(1000.0) == []
    sleeper.send_signal(signal.SIGCONT)
    wait_until(lambda: Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T")
    assert at.after(9.0) == []
    assert kinds(at.after(2.0)) == [("silent", 1, 11.0)]


def test_an_ended_process_is_forgotten(at, sleeper):
    """The process's folder is removed as well."""
    folder = at.add(sleeper.pid)
    sleeper.kill()
    sleeper.wait()

    assert at.after(100.0) == []
    assert not folder.exists()


def test_a_process_without_a_handler_gets_no_signal(sleeper, tmp_path):
    """Most signals would kill a process without a handler."""
    (tmp_path / "stacks.txt").touch()

    assert stall_report._told_by(sleeper.pid, signal.SIGUSR1, tmp_path / "stacks.txt") == ""
    assert sleeper.poll() is None


@pytest.fixture
def watch(tmp_path):
    """Return a function that watches this process and returns its folder."""
    ends = []

    def start() -> Path:
        ends.append(watched.start(tmp_path / "state", Limits(10.0)))
        (folder,) = watched.folder_of(agent_link.place_of(tmp_path / "state")).iterdir()
        return folder

    yield start
    for end in ends:
        end()


def test_the_signal_is_ignored_by_default(watch):
    """At the end our handler and the folder are removed."""
    undo_before = watched.catches(identity.job(), signal.SIGURG)
    folder = watch()

    assert watched.facts_of(folder).signal == signal.SIGURG
    assert (undo_before, watched.catches(identity.job(), signal.SIGURG)) == (False, True)


def test_a_handler_of_the_job_is_not_replaced(watch, tmp_path):
    """If `signal` or `faulthandler` has a handler of the job, another signal is used."""
    with (tmp_path / "own").open("w") as file:
        faulthandler.register(signal.SIGURG, file=file)
        try:
            found = watched.facts_of(watch()).signal
        finally:
            faulthandler.unregister(signal.SIGURG)

    assert found not in (0, signal.SIGURG)


def moved(folder: Path) -> float:
    """Return the time of this process's last activity."""
    clock = activity.read(folder / watched.CLOCK)
    assert clock is not None
    return clock.moved


def test_activity_of_the_job_is_recorded(store_uri, tmp_path):
    """Metrics, parameters, log lines and `progress` count; samples of system metrics do not."""
    service = MlflowService(tracking_uri=store_uri, autolog_disable=True)
    context = GlobalContext(mlflow_service=service, stall_after="15m", alerts_service=AlertsService(enable=False))
    with context, context.run("train", log_system_metrics=False) as run:
        (folder,) = watched.folder_of(agent_link.place_of(tmp_path / "state")).iterdir()
        for act in (
            lambda: mlflow.log_metric("loss", 0.5),
            lambda: mlflow.log_metrics({"loss": 0.5}),
            lambda: context.log_metrics({"loss": 0.5}, 1),
            lambda: mlflow.log_param("rate", 0.1),
            lambda: context.logger.info("a line"),
            context.progress,
        ):
            before = moved(folder)
            act()
            assert moved(folder) > before
        before = moved(folder)
        mlflow.log_metric("system/cpu_utilization_percentage", 50.0)
        assert moved(folder) == before
        facts = watched.facts_of(folder)
        assert (facts.run, facts.name, facts.owns, facts.after) == (run.info.run_id, "train", True, 900.0)
        context.progress(expect_within="40m")
        assert activity.read(folder / watched.CLOCK).quiet_until > time.monotonic() + 2000
        context.progress()
        assert activity.read(folder / watched.CLOCK).quiet_until == 0.0
    assert not folder.exists()


def test_durations_of_settings(monkeypatch):
    """A setting is a number of seconds or a text with a unit; the error for other values names the variable."""
    assert GlobalContext(stall_after=90).stall_after == 90.0
    monkeypatch.setenv("AUTOGEN_TEAM_STALL_AFTER", "15m")
    assert GlobalContext().stall_after == 900.0
    monkeypatch.setenv("AUTOGEN_TEAM_STALL_AFTER", "900.0")  # as passed to a worker
    assert GlobalContext().stall_after == 900.0
    monkeypatch.setenv("AUTOGEN_TEAM_STALL_AFTER", "soon")
    with pytest.raises(ConfigurationError, match=r"AUTOGEN_TEAM_STALL_AFTER is 'soon'.*write 90s, 5m, 2h or 1d"):
        GlobalContext()


def test_progress_takes_durations_only():
    """In a process that is not watched, `progress` only checks its argument."""
    context = GlobalContext()
    context.progress(expect_within=2400)
    with pytest.raises(ConfigurationError, match="expect_within: 'soon' is not a duration"):
        context.progress(expect_within="soon")


def test_the_option_takes_durations_only(run_python):
    """The error is raised before anything is started."""
    status, _, err = run_python("-m", "autogen_team", "run", "--stall-after", "5", "--", "true")

    assert status == 2
    assert "'5' is not a duration" in " ".join(err.replace("│", " ").split())
