"""A dead man's switch is notified when the job starts and when it ends."""

from __future__ import annotations

import http.server
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from autogen_team import GlobalContext
from autogen_team.errors import ConfigurationError
from autogen_team.io.services import AlertsService, LoggerService, MlflowService

pytestmark = pytest.mark.usefixtures("forked_children")


@dataclass
class Switch:
    """A monitoring service on this machine that records requests."""

    url: str
    heard: list[tuple[str, str]] = field(default_factory=list)
    status: int = 200
    hold: threading.Event | None = None

    def events(self) -> list[str]:
        """Return the requested paths relative to the URL."""
        return [path for path, _ in self.heard]


@pytest.fixture
def switch() -> Iterator[Switch]:
    """Return a service that accepts pings."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if found.hold is not None:
                found.hold.wait(30)
            found.heard.append((self.path.removeprefix("/7f0c"), body))
            self.send_response(found.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Switch(f"http://127.0.0.1:{server.server_port}/7f0c")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        if found.hold is not None:
            found.hold.set()
        server.shutdown()


@contextmanager
def job(switch: Switch, **fields: object) -> Iterator[GlobalContext]:
    """Run a context that sends pings."""
    alerts = AlertsService(ping=switch.url, **fields)
    with GlobalContext(
        logger_service=LoggerService(),
        alerts_service=alerts,
        mlflow_service=MlflowService(autolog_disable=True),
        alert_on="never",
    ) as context:
        yield context


def test_a_job_that_finishes(switch):
    """A successful job requests the start URL and the URL itself; its nested run sends nothing."""
    with job(switch) as context, context.run("train", log_system_metrics=False), context.run("fold", nested=True):
        pass

    assert switch.heard == [("/start", ""), ("", "")]


def test_a_job_that_fails(switch):
    """A failed job sends the reason, with secrets masked."""
    with pytest.raises(ValueError, match="bad"), job(switch) as context, context.run("train", log_system_metrics=False):
        raise ValueError("bad shape, api_key=abcdefgh12345678")

    assert switch.events() == ["/start", "/fail"]
    assert "train failed" in switch.heard[1][1]
    assert "ValueError: bad shape" in switch.heard[1][1]
    assert "abcdefgh12345678" not in switch.heard[1][1]


JOB = """
import os, signal, sys
from autogen_team import GlobalContext
from autogen_team.io.services import AlertsService, MlflowService
alerts = AlertsService(ping=sys.argv[1])
with GlobalContext(alerts_service=alerts, mlflow_service=MlflowService(autolog_disable=True)) as context:
    with context.run("train", log_system_metrics=False):
        print("open", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGKILL, "died without closing its run")]
)
def test_a_job_that_is_killed(switch, start_python, wait_until, number, reason):
    """The agent reports a killed job, even if the URL was an argument in code."""
    process = start_python("-c", JOB, switch.url, stdin=-1)
    process.wait_for("open")
    wait_until(switch.events)
    process.send(number)
    process.finish()
    wait_until(lambda: "/fail" in switch.events())

    assert switch.events() == ["/start", "/fail"]
    assert reason in switch.heard[1][1]


def test_a_supervised_job_that_is_killed(switch, start_python, tmp_path):
    """The supervisor reports a killed job once."""
    path = tmp_path / "job.py"
    path.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    process = start_python("-m", "autogen_team", "run", str(path), AUTOGEN_TEAM_ALERTS_PING=switch.url, fresh=True)
    status, _, _ = process.finish()

    assert status == 128 + signal.SIGKILL
    assert [event for event in switch.events() if event != "/start"] == ["/fail"]  # it may die before its start ping
    assert "SIGKILL" in switch.heard[-1][1]


def test_a_worker_sends_none(switch, monkeypatch):
    """Only rank 0 sends pings."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with job(switch) as context, context.run("train", log_system_metrics=False):
        pass

    assert switch.heard == []


def test_a_service_that_does_not_answer_does_not_delay_the_job(switch, caplog):
    """The job continues; one warning, without the URL, says that its end was not reported."""
    switch.hold = threading.Event()
    with job(switch, flush_timeout=0.2) as context, context.run("train", log_system_metrics=False):
        pass

    (said,) = [record.getMessage() for record in caplog.records if "dead man's switch" in record.getMessage()]
    assert "could not be notified of the job's success: it did not answer within 0.2 s" in said
    assert "7f0c" not in said


def test_a_refusal_is_reported_once(switch, caplog):
    """If the service does not know the URL, the ping is not retried."""
    switch.status = 404
    with job(switch) as context:
        for _ in range(2):
            with context.run("train", log_system_metrics=False):
                pass

    (said,) = [record.getMessage() for record in caplog.records if "dead man's switch" in record.getMessage()]
    assert "it answers 404" in said
    assert len(switch.heard) == 4


def test_a_temporary_failure_is_retried(switch):
    """If the service is briefly overloaded, the end is retried until it arrives."""
    switch.status = 503
    recover = threading.Timer(0.3, lambda: setattr(switch, "status", 200))
    recover.start()
    with job(switch, flush_timeout=20.0) as context, context.run("train", log_system_metrics=False):
        pass

    assert switch.events().count("") >= 1
    recover.join()


@pytest.mark.parametrize("url", ["hc-ping.com/7f0c", "ftp://example.com", "https:///7f0c"])
def test_an_invalid_url_is_refused(url):
    """An invalid URL is rejected when the service is created, and is not displayed."""
    with pytest.raises(ConfigurationError, match="expected a URL with http:// or https://") as raised:
        AlertsService(ping=url)

    assert url not in str(raised.value)


def test_the_url_is_shown_nowhere(switch):
    """The URL is not in the service's repr, its settings or the environment of workers."""
    service = AlertsService(ping=switch.url)

    assert "7f0c" not in repr(service)
    assert [setting.value for setting in service.settings() if setting.name == "ping"] == ["***"]
    assert "AUTOGEN_TEAM_ALERTS_PING" not in service.environment()


def test_a_forked_child_sends_none(switch):
    """A run of a forked child is not the job's run."""
    with job(switch) as context:
        child = os.fork()
        if not child:
            with context.run("child", log_system_metrics=False):
                pass
            os._exit(0)
        os.waitpid(child, 0)

    assert switch.heard == []
