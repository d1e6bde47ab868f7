"""A dead man's switch hears when the job starts, and how it ends."""

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


@dataclass
class Switch:
    """A service on this machine, with what it has heard."""

    url: str
    heard: list[tuple[str, str]] = field(default_factory=list)
    status: int = 200
    hold: threading.Event | None = None

    def events(self) -> list[str]:
        """Return the paths behind the URL that were asked for."""
        return [path for path, _ in self.heard]


@pytest.fixture
def switch() -> Iterator[Switch]:
    """Return a service that takes pings."""

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
    """A context that pings."""
    alerts = AlertsService(ping=switch.url, **fields)
    with GlobalContext(
        logger_service=LoggerService(),
        alerts_service=alerts,
        mlflow_service=MlflowService(autolog_disable=True),
        alert_on="never",
    ) as context:
        yield context


def test_a_job_that_finishes(switch):
    """The start, and the URL itself; nothing for the run inside."""
    with job(switch) as context, context.run("train", log_system_metrics=False), context.run("fold", nested=True):
        pass

    assert switch.heard == [("/start", ""), ("", "")]


def test_a_job_that_fails(switch):
    """The reason, without secrets."""
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
    """The agent reports a job that could not speak, though the URL was an argument."""
    process = start_python("-c", JOB, switch.url, stdin=-1)
    process.wait_for("open")
    wait_until(switch.events)
    process.send(number)
    process.finish()
    wait_until(lambda: "/fail" in switch.events())

    assert switch.events() == ["/start", "/fail"]
    assert reason in switch.heard[1][1]


def test_a_supervised_job_that_is_killed(switch, start_python, tmp_path):
    """The supervisor reports it, once."""
    path = tmp_path / "job.py"
    path.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    process = start_python("-m", "autogen_team", "run", str(path), AUTOGEN_TEAM_ALERTS_PING=switch.url, fresh=True)
    status, _, _ = process.finish()

    assert status == 128 + signal.SIGKILL
    assert [event for event in switch.events() if event != "/start"] == ["/fail"]  # it may have died before its start
    assert "SIGKILL" in switch.heard[-1][1]


def test_a_worker_sends_none(switch, monkeypatch):
    """Rank 0 speaks for the job."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with job(switch) as context, context.run("train", log_system_metrics=False):
        pass

    assert switch.heard == []


def test_a_service_that_does_not_answer_holds_up_nothing(switch, caplog):
    """The job goes on; that its end was not told is said once, without the URL."""
    switch.hold = threading.Event()
    with job(switch, flush_timeout=0.2) as context, context.run("train", log_system_metrics=False):
        pass

    (said,) = [record.getMessage() for record in caplog.records if "dead man's switch" in record.getMessage()]
    assert "could not be notified of the job's success: it did not answer within 0.2 s" in said
    assert "7f0c" not in said


def test_a_refusal_is_said_once(switch, caplog):
    """A URL that the service does not know is not tried again."""
    switch.status = 404
    with job(switch) as context:
        for _ in range(2):
            with context.run("train", log_system_metrics=False):
                pass

    (said,) = [record.getMessage() for record in caplog.records if "dead man's switch" in record.getMessage()]
    assert "it answers 404" in said
    assert len(switch.heard) == 4


def test_a_failure_that_passes_is_tried_again(switch):
    """A service that is overloaded for a moment hears of the end all the same."""
    switch.status = 503
    recover = threading.Timer(0.3, lambda: setattr(switch, "status", 200))
    recover.start()
    with job(switch, flush_timeout=20.0) as context, context.run("train", log_system_metrics=False):
        pass

    assert switch.events().count("") >= 1
    recover.join()


@pytest.mark.parametrize("url", ["hc-ping.com/7f0c", "ftp://example.com", "https:///7f0c"])
def test_what_is_no_url_is_refused(url):
    """At once, and without showing it."""
    with pytest.raises(ConfigurationError, match="expected a URL with http:// or https://") as raised:
        AlertsService(ping=url)

    assert url not in str(raised.value)


def test_the_url_is_shown_nowhere(switch):
    """Neither in the service, nor in its settings, nor in the environment of workers."""
    service = AlertsService(ping=switch.url)

    assert "7f0c" not in repr(service)
    assert [setting.value for setting in service.settings() if setting.name == "ping"] == ["***"]
    assert "AUTOGEN_TEAM_ALERTS_PING" not in service.environment()


def test_a_forked_child_sends_none(switch):
    """What it opens is not the run of the job."""
    with job(switch) as context:
        child = os.fork()
        if not child:
            with context.run("child", log_system_metrics=False):
                pass
            os._exit(0)
        os.waitpid(child, 0)

    assert switch.heard == []
