"""The agent: one process that ships the journals of all jobs of a state folder."""

from __future__ import annotations

import http.server
import json
import os
import random
import re
import signal
import threading
from pathlib import Path

import mlflow
import psutil
import pytest

from autogen_team._process import run_events
from autogen_team._ship import agent_link, mlflow_backend, rest_backend
from autogen_team._spool import index

pytestmark = pytest.mark.usefixtures("fresh_agents")

KILLS = int(os.environ.get("KILLS", "5"))
"""Rounds of kills; `make test-kills` runs 200."""
SMALL = 45
"""Memory limit in megabytes of an agent that ships to a server."""

AT_ONCE = """
from autogen_team._capture import write_behind
write_behind._HANDOVER_TO_DATABASE = write_behind._HANDOVER_TO_SERVER = 0.0
"""
JOB = """
import os, sys, time, mlflow
from autogen_team import GlobalContext
from autogen_team._capture import write_behind
from autogen_team.io.services import LoggerService, MlflowService
services = {"logger_service": LoggerService(sink="job.log"), "mlflow_service": MlflowService(autolog_disable=True)}
with GlobalContext(**services) as context, context.run("job", log_system_metrics=False) as run:
    (one,) = write_behind._working.values()
    print("run", run.info.run_id, flush=True)
    was_shipped = False
    for n in range(10**9):
        mlflow.log_metric("loss", n, step=n)
        is_shipped = one.shipper._handed_over
        if is_shipped != was_shipped:
            was_shipped = is_shipped
            print("shipped by", "the agent" if is_shipped else "the job", flush=True)
        if n % 10 == 0:
            mlflow.log_param(f"p{n}", n)
            mlflow.set_tag("last", n)
            context.logger.info("line {}", n)
            print("acknowledged", n, flush=True)
        BODY
        time.sleep(0.002)
    assert one.flush(60)
"""


@pytest.fixture
def start_job(start_python, store_uri):
    """Return a function that starts a job that hands over to the agent at once; it returns process and run id."""

    def start(body: str = "pass", **environment: str):
        process = start_python("-c", AT_ONCE + JOB.replace("BODY", body), **environment)
        return process, process.wait_for("run ").split()[1]

    return start


@pytest.fixture
def agents(tmp_path):
    """Return a function that returns the agents of this test's state folder."""

    def find() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if agent_link.NAME in words and any(str(tmp_path / "state") in word for word in words):
                found.append(process)
        return found

    return find


def steps(uri: str, run_id: str) -> list[int]:
    """Return the steps of the job's metric in the store."""
    return sorted(metric.step for metric in mlflow.MlflowClient(uri).get_metric_history(run_id, "loss"))


@pytest.mark.parametrize("store", ["store_uri", "postgres_uri", "mlflow_server"])
def test_the_agent_ships_the_journal_of_a_job(start_python, request, store):
    """The agent continues where the job's thread stopped; when the job ends, all its items are in the store."""
    uri = request.getfixturevalue(store)
    job = start_python(
        "-c", AT_ONCE + JOB.replace("BODY", "if is_shipped and n % 100 == 0: break"), MLFLOW_TRACKING_URI=uri
    )
    run_id = job.wait_for("run ").split()[1]
    job.wait_for("shipped by the agent")
    status, _, err = job.finish()

    assert status == 0, err
    found = steps(uri, run_id)
    assert found == list(range(len(found)))
    assert len(found) % 100 == 1
    assert mlflow.MlflowClient(uri).get_run(run_id).info.status == "FINISHED"


def test_jobs_share_an_agent(start_job, agents):
    """One agent ships for two jobs at once."""
    first, _ = start_job()
    first.wait_for("shipped by the agent")
    second, _ = start_job()
    second.wait_for("shipped by the agent")

    assert len(agents()) == 1


def test_a_small_agent_ships_to_a_server(start_python, mlflow_server, agents):
    """An agent that ships to a server does not import MLflow."""
    job = start_python("-c", AT_ONCE + JOB.replace("BODY", "pass"), MLFLOW_TRACKING_URI=mlflow_server)
    job.wait_for("shipped by the agent")
    (agent,) = agents()

    assert agent.memory_info().rss < SMALL * 2**20


def test_the_agent_of_a_database_loads_no_data_libraries(start_job, agents):
    """It loads MLflow and SQLAlchemy, but not what only jobs need."""
    job, _ = start_job()
    job.wait_for("shipped by the agent")
    (agent,) = agents()
    loaded = {part for mapped in agent.memory_maps() for part in Path(mapped.path).parts}

    assert "sqlalchemy" in loaded
    assert not {"numpy", "pandas", "pyarrow", "scipy"} & loaded


def test_an_agent_that_is_killed_is_started_again(start_job, agents, store_uri, wait_until):
    """The job ships until the next agent is ready, and nothing is lost."""
    job, run_id = start_job("if len(sys.argv) > 9: break")
    job.wait_for("shipped by the agent")
    (agent,) = agents()
    agent.kill()
    job.wait_for("shipped by the job")
    job.wait_for("shipped by the agent")
    acknowledged = int(job.wait_for("acknowledged").split()[1])
    job.send(signal.SIGKILL)
    job.finish()
    wait_until(lambda: mlflow.MlflowClient(store_uri).get_run(run_id).info.status == "KILLED")

    found = steps(store_uri, run_id)
    assert found == list(range(len(found)))
    assert len(found) > acknowledged


def test_an_agent_that_is_killed_while_it_prepares_is_replaced(start_job, agents, wait_until):
    """A new agent is requested, because the job would otherwise wait for an answer forever."""
    job, _ = start_job("if len(sys.argv) > 9: break")
    wait_until(agents)
    for agent in agents():
        agent.kill()
    job.wait_for("shipped by the agent")


@pytest.mark.parametrize("seed", range(KILLS))
def test_kills_at_any_moment_lose_nothing(start_job, agents, store_uri, state_is_empty, seed, run_python, wait_until):
    """The agent, the job or both are killed; `recover` ships the rest."""
    run_id, acknowledged = _kill_at_any_moment(random.Random(seed), start_job, agents)
    run_python("-m", "autogen_team", "recover")
    wait_until(state_is_empty)

    client = mlflow.MlflowClient(store_uri)
    run = client.get_run(run_id)
    found = steps(store_uri, run_id)
    lines = run_log(client, run_id)
    assert run.info.status == "KILLED"
    assert found == list(range(len(found)))
    assert len(found) > acknowledged
    assert {f"p{n}" for n in range(0, acknowledged + 1, 10)} <= set(run.data.params)
    assert int(run.data.tags["last"]) >= acknowledged
    assert [n for n in range(0, acknowledged + 1, 10) if lines.count(f"line {n}\n") != 1] == []


@pytest.fixture
def state_is_empty(tmp_path):
    """Return a function that returns whether no journal is left."""
    return lambda: index.find(tmp_path / "state") == []


def run_log(client: mlflow.MlflowClient, run_id: str) -> str:
    """Return the log of a run."""
    (found,) = client.list_artifacts(run_id, run_events.LOG_ARTIFACTS)
    return Path(client.download_artifacts(run_id, found.path)).read_text()


def _kill_at_any_moment(dice: random.Random, start_job, agents) -> tuple[str, int]:
    """Kill some of the processes at random moments; return the run's id and the last acknowledged step."""
    job, run_id = start_job()
    if dice.random() < 0.7:
        job.wait_for("shipped by the agent")
    for _ in range(dice.randrange(1, 30)):
        last = job.wait_for("acknowledged")
    victims = dice.choice(["agent", "job", "both"])
    for agent in agents() if victims != "job" else ():
        agent.kill()
    if victims == "agent":
        for _ in range(dice.randrange(1, 30)):
            last = job.wait_for("acknowledged")
    job.send(signal.SIGKILL)
    _, out, _ = job.finish()
    return run_id, int(re.findall(r"acknowledged (\d+)\n", last + out)[-1])


def test_a_job_that_closes_its_descriptors_is_still_shipped(start_job, agents, store_uri, wait_until):
    """A daemon closes all descriptors, including the connection to the agent; its death is still noticed."""
    job, run_id = start_job("if n == 50: os.closerange(3, 256)")
    for _ in range(20):
        job.wait_for("acknowledged")
    job.send(signal.SIGKILL)
    job.finish()

    wait_until(lambda: mlflow.MlflowClient(store_uri).get_run(run_id).info.status == "KILLED")
    found = steps(store_uri, run_id)
    assert found == list(range(len(found)))


def test_artifacts_do_not_keep_the_agent_from_shipping(start_python, make_server, store_uri):
    """Files logged in an outage wait beside the journal, and are uploaded later."""
    server = make_server(store_uri)
    body = (
        "if n == 100: print('go', flush=True)\n"
        "        while n == 100 and not os.path.exists('go'): time.sleep(0.01)\n"
        "        if n == 100: mlflow.log_text('words', 'a.txt'); print('kept', flush=True)\n"
        "        if n > 100 and n % 100 == 0 and is_shipped and one.journal.acked > n: break"
    )
    job = start_python("-c", AT_ONCE + JOB.replace("BODY", body), MLFLOW_TRACKING_URI=server.uri)
    run_id = job.wait_for("run ").split()[1]
    job.wait_for("go")
    server.kill()
    Path("go").touch()
    job.wait_for("kept")
    server.start()
    status, _, err = job.finish()

    assert status == 0, err
    assert "a.txt" in [found.path for found in mlflow.MlflowClient(server.uri).list_artifacts(run_id)]
    found = steps(store_uri, run_id)
    assert found == list(range(len(found)))


def test_the_rest_of_a_job_is_delivered_once_its_server_is_back(start_python, make_server, store_uri, wait_until):
    """The agent outlives the job and retries, so the user need not do anything."""
    server = make_server(store_uri)
    job = start_python(
        "-c",
        AT_ONCE
        + JOB.replace("BODY", "if n == 100: print('go', flush=True); time.sleep(0.1)\n        if n == 500: break"),
        MLFLOW_TRACKING_URI=server.uri,
        AUTOGEN_TEAM_MLFLOW_FLUSH_TIMEOUT="1",
    )
    run_id = job.wait_for("run ").split()[1]
    job.wait_for("go")
    server.kill()
    job.finish()
    assert "The agent retries for 15 minutes." in Path("job.log").read_text()
    server.start()

    wait_until(lambda: mlflow.MlflowClient(store_uri).get_run(run_id).info.status != "RUNNING")
    assert steps(store_uri, run_id) == list(range(501))


class _Echo(http.server.BaseHTTPRequestHandler):
    """A request handler that records the headers of each request."""

    def do_POST(self) -> None:
        """Answer as MLflow does."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append(dict(self.headers))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def echo():
    """Return a server that records the headers of requests in `heard`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        server.heard = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"MLFLOW_TRACKING_USERNAME": "anna", "MLFLOW_TRACKING_PASSWORD": "x:y"},
        {"MLFLOW_TRACKING_TOKEN": "abc"},
        {"MLFLOW_WORKSPACE": "team"},
    ],
    ids=lambda given: "-".join(given) or "none",
)
def test_the_agent_sends_the_headers_that_mlflow_sends(echo, monkeypatch, environment):
    """The job computes the headers from MLflow's own settings."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    uri = f"http://127.0.0.1:{echo.server_port}"
    by_mlflow = mlflow_backend.of(mlflow_backend.plain_store(uri), uri)
    login = json.loads(json.dumps(mlflow_backend.login_of(uri)))
    by_agent = rest_backend.Server(rest_backend.sender(lambda: login))

    by_mlflow.update("a", "FINISHED", 1, None)
    by_agent.update("a", "FINISHED", 1, None)

    first, second = echo.heard
    assert first == second


def test_a_socket_can_have_a_long_path(tmp_path):
    """The path may exceed the 108 bytes that the system allows for a socket's address."""
    place = tmp_path / ("x" * 120)
    place.mkdir()
    with agent_link.listen(place), agent_link.connect(place):
        assert (place / "socket").stat().st_mode & 0o777 == 0o600


def test_a_job_without_an_agent_ships_by_itself(start_python, store_uri):
    """If no process can be started, for example, the job's thread ships."""
    job = start_python(
        "-c",
        AT_ONCE
        + "from autogen_team._ship import agent_link\nagent_link._AGENT = 'import sys; sys.exit(1)'\n"
        + JOB.replace("BODY", "if n == 500: break"),
    )
    status, out, err = job.finish()

    assert status == 0, err
    assert "shipped by" not in out
    said = Path("job.log").read_text()
    assert said.count("the agent could not be started, so this process ships its own journal") == 1
    run_id = out.split()[1]
    assert steps(store_uri, run_id) == list(range(501))


def test_the_state_folder_holds_no_secret(start_python, mlflow_server, tmp_path):
    """Credentials are sent over the socket and never written to disk."""
    job = start_python(
        "-c",
        AT_ONCE + JOB.replace("BODY", "pass"),
        MLFLOW_TRACKING_URI=mlflow_server,
        MLFLOW_TRACKING_TOKEN="not-to-be-written",
    )
    job.wait_for("shipped by the agent")

    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"not-to-be-written" in path.read_bytes()]
