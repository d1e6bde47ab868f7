"""`autogen-team ui`: MLflow's web UI for a store, and the link to the last run."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import psutil
import pytest

from autogen_team.errors import ConfigurationWarning
from autogen_team.io.services import MlflowService
from testkit import forkserver

UI = ("-m", "autogen_team", "ui")
PATIENCE = 60.0
"""Limit in seconds; only a bound on hangs."""


class Pages:
    """A running `ui` command, with the JSON that it has printed."""

    def __init__(self, process):
        self.process = process
        text = ""
        for line in process.stdout:
            text += line
            if line == "}\n":
                break
        assert text, process.stderr.read()
        self.printed = json.loads(text)
        self.url = self.printed["url"]

    def get(self, path):
        """Return the response at a path."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=PATIENCE) as answer:
            return answer.read().decode()

    def servers(self):
        """Return the server processes of the command."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, signum):
        """Send the signal; return the exit status and stderr."""
        self.process.send_signal(signum)
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err


@contextmanager
def serving(*arguments, fresh=False):
    """Run the command until the end of the block."""
    command = [*UI, "--json", *arguments]
    process = forkserver.popen(command, fresh=fresh, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield Pages(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def record(name, experiment="autogen_team", **settings):
    """Record a run with an artifact, and return the path of its link."""
    service = MlflowService(experiment_name=experiment, autolog_disable=True, **settings)
    with service, service.run_context(service.RunConfig(name=name, log_system_metrics=False)) as run:
        mlflow.log_text("as it was written", "notes/today.txt")
    return f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def artifact(link):
    """Return the path of the artifact of a run in the web UI."""
    return f"/get-artifact?path=notes/today.txt&run_uuid={link.rpartition('/')[2]}"


def listens(port, host="127.0.0.1"):
    """Return whether a process listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@pytest.fixture(scope="module")
def links():
    """Return the links of the runs in the store of `pages`, in order."""
    return []


@pytest.fixture(scope="module")
def pages(tmp_path_factory, migrated_database, links):
    """Return the web UI of a database with runs of two experiments."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(migrated_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOGEN_TEAM_STATE_DIR", str(folder / "state"))
        patch.chdir(folder)
        uri = f"sqlite:///{folder}/mlflow.db"
        links[:] = [record("first", tracking_uri=uri), record("second", tracking_uri=uri)]
        links.append(record("third", "another", tracking_uri=uri))
        with serving(fresh=True) as found:  # the tests inspect its processes
            yield found


def test_the_web_ui_is_mlflow_s(pages):
    """MLflow's scripts are served too."""
    page = pages.get("/")

    script = page.partition('src="')[2].partition('"')[0]
    assert "<title>MLflow</title>" in page
    assert len(pages.get(f"/{script}")) > 1000


def test_the_link_is_that_of_the_last_run_of_the_experiment(pages, links):
    """The link leads neither to the last run of the whole store nor to the first one."""
    assert pages.printed == {"url": pages.url, "last_run": f"{pages.url}{links[1]}"}


def test_the_api_of_the_web_ui_has_the_run(pages, links):
    """The API serves the job's store."""
    run = json.loads(pages.get(f"/api/2.0/mlflow/runs/get?run_id={links[1].rpartition('/')[2]}"))["run"]

    assert (run["info"]["run_name"], run["info"]["status"]) == ("second", "FINISHED")


def test_artifacts_in_a_folder_are_shown(pages, links):
    """Artifacts are served as the job has written them, without a tracking server."""
    assert pages.get(artifact(links[1])) == "as it was written"


def test_the_server_listens_on_the_loopback_interface_only(pages):
    """Other addresses refuse connections, even others of the loopback interface."""
    port = urlsplit(pages.url).port
    listening = [each.laddr for server in pages.servers() for each in server.net_connections() if each.status]

    assert set(listening) >= {("127.0.0.1", port)}
    assert listens(port)
    assert not listens(port, "127.0.0.2")


def test_the_store_is_not_on_the_command_line_of_the_server(pages):
    """Other users can read the command line, and the URI may contain a password."""
    lines = [" ".join(server.cmdline()) for server in pages.servers()]

    assert any("mlflow.server" in line for line in lines)
    assert not any("mlflow.db" in line for line in lines)


def test_a_used_port_is_an_error(pages, run_python):
    """The error is reported at once, with the remedy."""
    status, out, err = run_python(*UI, "--port", str(urlsplit(pages.url).port))

    assert (status, out) == (2, "")
    assert "Address already in use; omit --port for a free one" in err


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_process_is_left_behind(store_uri, signum, status, wait_until):
    """With any way to end it, the port is free again."""
    with serving(fresh=True) as pages:
        servers = pages.servers()
        ended, err = pages.end(signum)

    assert (ended, "Traceback" in err) == (status, False)
    assert len(servers) >= 2
    wait_until(lambda: not any(server.is_running() and server.status() != "zombie" for server in servers))
    wait_until(lambda: not listens(urlsplit(pages.url).port))  # a thread may outlive its process for a moment


def test_runs_in_a_folder_are_shown():
    """MLflow refuses file stores by default."""
    with pytest.warns(ConfigurationWarning, match="is a folder"):
        link = record("train", tracking_uri="runs")
    with serving("--tracking-uri", "runs") as pages:
        assert pages.printed["last_run"] == f"{pages.url}{link}"
        assert pages.get(artifact(link)) == "as it was written"


def test_offline_runs_are_shown(free_port, monkeypatch):
    """Offline runs are shown before they are copied, and their server is not contacted."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    link = record("train", mode="offline")
    with serving("--set", "mlflow.mode=offline") as pages:
        assert pages.printed["last_run"] == f"{pages.url}{link}"
        assert pages.get(artifact(link)) == "as it was written"


def test_offline_runs_of_a_job_without_its_registry_are_shown(free_port, store_uri, monkeypatch):
    """In mode `auto`, a job also works offline if only its registry is down."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://127.0.0.1:{free_port()}")
    link = record("train", mode="auto")
    with serving("--set", "mlflow.mode=auto") as pages:
        assert pages.printed["last_run"] == f"{pages.url}{link}"


def test_offline_runs_that_do_not_exist_are_an_error(run_python):
    """No file is created in the state folder."""
    status, _, err = run_python(*UI, "--tracking-uri", "http://bob:hunter2@127.0.0.1", "--set", "mlflow.mode=offline")

    assert status == 2
    assert "there are no offline runs for http://bob:***@127.0.0.1" in err


def test_a_store_without_runs_is_served_too(free_port, store_uri, monkeypatch, wait_until):
    """It uses the given port; with `--open`, a browser is opened there."""
    browser = Path("browser")
    browser.write_text('#!/bin/sh\necho "$1" > opened\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser.absolute()} %s")
    port = free_port()
    with serving("--port", str(port), "--open") as pages:
        assert pages.printed == {"url": f"http://127.0.0.1:{port}", "last_run": None}
        wait_until(lambda: Path("opened").exists() and Path("opened").read_text())
        assert Path("opened").read_text() == f"{pages.url}\n"


def test_without_the_extra_the_error_says_what_to_install(run_python):
    """The MLflow package that the library requires has no web UI."""
    package = Path("without_pages/mlflow/__init__.py")
    package.parent.mkdir(parents=True)
    package.write_text("raise AssertionError('it is not to be loaded')")

    status, out, err = run_python(*UI, PYTHONPATH=str(package.parent.parent.absolute()))

    assert (status, out) == (2, "")
    assert "the extra `ui`, which is not installed: pip install 'autogen-team[ui]'" in err
    assert not Path("mlflow.db").exists()


def test_an_invalid_store_is_an_error_with_the_output_of_the_server(run_python):
    """The last lines of the server's output are shown."""
    Path("mlflow.db").write_text("no database " * 1000)

    status, out, err = run_python(*UI)

    assert (status, out) == (1, "")
    assert "error: MLflow's web UI exited with status 1 before it answered. Its last output:" in err
    assert "file is not a database" in err


def test_for_a_server_the_links_are_printed(mlflow_server, run_python):
    """No server is started; the printed URLs contain no password."""
    link = record("train", tracking_uri=mlflow_server)
    uri = mlflow_server.replace("://", "://bob:hunter2@")

    status, out, err = run_python(*UI, "--tracking-uri", uri)

    assert status == 0, err
    assert out.splitlines()[0] == f"ui        {mlflow_server}"
    assert out.splitlines()[1].startswith(f"last run  {mlflow_server}{link} (train, FINISHED, started ")
    assert "hunter2" not in out + err
    assert "Ctrl-C" not in err


def test_without_the_experiment_the_last_run_is_that_of_all(mlflow_server, run_python):
    """The last run of all experiments is shown instead."""
    link = record("train", "some experiment", tracking_uri=mlflow_server)

    _, out, err = run_python(*UI, "--tracking-uri", mlflow_server, "--experiment", "no such experiment", "--json")

    assert json.loads(out)["last_run"] == f"{mlflow_server}{link}", err


def test_a_server_that_does_not_answer_is_an_error(free_port, run_python):
    """No link is printed, because it would not work."""
    status, out, err = run_python(*UI, "--tracking-uri", f"http://127.0.0.1:{free_port()}")

    assert (status, out) == (1, "")
    assert "cannot be used" in err


def test_a_server_that_does_not_list_its_runs_is_still_linked(run_python, start_python):
    """The server may require a password."""
    code = (
        "import http.server\n"
        "class Closed(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_error(401)\n"
        "    do_POST = do_GET\n"
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Closed)\n"
        "print('port', server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    port = start_python("-c", code).wait_for("port").split()[1]

    status, out, err = run_python(*UI, "--tracking-uri", f"http://127.0.0.1:{port}", "--json")

    assert (status, json.loads(out)) == (0, {"url": f"http://127.0.0.1:{port}", "last_run": None})
    assert "the last run could not be looked up" in err


def test_a_missing_store_is_created_and_reported():
    """A message reveals a misspelt name; experiments of the new store keep artifacts where jobs do."""
    with serving() as pages:
        assert pages.printed["last_run"] is None
        found = json.loads(pages.get("/api/2.0/mlflow/experiments/get?experiment_id=0"))["experiment"]
        _, err = pages.end(signal.SIGTERM)

    assert f"there is no store at sqlite:///{Path.cwd()}/mlflow.db yet: creating an empty one" in err
    assert found["artifact_location"] == str(Path.cwd() / "mlruns" / "0")
