"""Log lines for an OpenTelemetry collector wait on disk, and the agent sends them from outside the job."""

from __future__ import annotations

import logging
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from autogen_team._ship import agent_link, collector, lines
from autogen_team._spool import journal, reader
from autogen_team.errors import ConfigurationError
from autogen_team.io.services import LoggerService
from testkit.receiver import KEY, Receiver, values

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")

SECRET = "correct-horse-battery"
JOB = """
import os, sys, time
from autogen_team.io.services import LoggerService
with LoggerService(sink="job.log", otlp=True, run_log=False) as service:
    log = service.logger()
    BODY
"""
WAIT_FOR_END = "print('logged', flush=True)\n    sys.stdin.read()"


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    """Set the standard variables, but for the collector."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-api-key={KEY}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "trainer")
    monkeypatch.setenv("SOME_API_TOKEN", SECRET)


@pytest.fixture
def make_receiver(monkeypatch):
    """Return a function that starts a collector, by default on a free port, and names it in the environment."""
    made = []

    def make(port: int = 0) -> Receiver:
        made.append(Receiver(port))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made[-1].uri)
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def receiver(make_receiver):
    """Return a running collector."""
    return make_receiver()


@pytest.fixture
def away(monkeypatch, free_port):
    """Name a collector that does not run, and return its port."""
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    return port


@pytest.fixture
def start_job(start_python):
    """Return a function that starts a job with this body, which has `log`."""

    def start(body: str, before: str = "", **environment: str):
        return start_python("-c", before + JOB.replace("BODY", body), stdin=subprocess.PIPE, **environment)

    return start


def waiting(state: Path) -> list[Path]:
    """Return the journals with lines."""
    return sorted((state / journal.LINES).glob("*"))


def service_to(sink: Path, **fields) -> LoggerService:
    """Return a service that sends lines."""
    return LoggerService(sink=sink, otlp=True, run_log=False, **fields)


def test_the_agent_sends_the_lines(start_job, receiver, wait_until):
    """The lines arrive in order, and the job loads nothing that encodes or sends them."""
    job = start_job(f"for n in range(100): log.info('line {{}}', n)\n    {WAIT_FOR_END}")
    job.wait_for("logged")
    wait_until(lambda: len(receiver.lines) >= 100)

    assert receiver.bodies == [f"line {n}" for n in range(100)]
    assert receiver.resources[0]["service.name"] == "trainer"
    assert receiver.resources[0]["process.pid"] == job.popen.pid
    status, _, err = job.finish("")
    assert (status, err) == (0, "")


def test_the_job_does_not_encode(start_job, receiver, wait_until):
    """In a job with an agent, neither protocol buffers nor the HTTP client are loaded."""
    job = start_job(
        "log.info('a line')\n    sys.stdin.readline()\n"
        "print([name for name in ('requests', 'autogen_team._ship.otlp_request') if name in sys.modules])"
    )
    wait_until(lambda: receiver.lines)
    _, out, _ = job.finish("\n")
    assert out.strip() == "[]"


def test_lines_of_a_killed_job_arrive_once(start_job, receiver, wait_until, tmp_path):
    """After SIGKILL, the agent sends each line whose call had returned, once, and removes the journal."""
    job = start_job("for n in range(5000): log.info('line {}', n)\n    os.kill(os.getpid(), 9)")
    status, _, _ = job.finish()

    assert status == -signal.SIGKILL
    wait_until(lambda: not waiting(tmp_path / "state"))
    assert receiver.bodies == [f"line {n}" for n in range(5000)]


def test_a_job_that_is_killed_at_its_first_line_is_shipped(start_job, receiver, wait_until):
    """The agent knows the collector from the environment of a job that has never talked to it."""
    start_job("log.info('the only line')\n    os.kill(os.getpid(), 9)").finish()
    wait_until(lambda: receiver.lines)
    assert receiver.bodies == ["the only line"]


def test_lines_wait_while_the_collector_is_away(start_job, away, make_receiver, wait_until):
    """Lines that are logged in an outage arrive in order, once, when the collector is back; one warning says so."""
    job = start_job(
        "for n in range(50): log.info('line {}', n)\n    while 'cannot be sent' not in open('job.log').read(): "
        f"time.sleep(0.02)\n    for n in range(50, 100): log.info('line {{}}', n)\n    {WAIT_FOR_END}"
    )
    job.wait_for("logged")
    receiver = make_receiver(away)
    wait_until(lambda: "line 99" in receiver.bodies)

    status, _, _ = job.finish("")
    assert status == 0
    assert [body for body in receiver.bodies if body.startswith("line ")] == [f"line {n}" for n in range(100)]
    assert Path("job.log").read_text().count("log lines cannot be sent to the OpenTelemetry collector") == 1


def test_the_agent_sends_what_is_left_when_the_collector_is_back(start_job, away, make_receiver, wait_until, tmp_path):
    """A job that ends in an outage waits for seconds only, and the agent goes on."""
    job = start_job("log.info('a line')")
    status, _, err = job.finish()

    assert status == 0
    assert "log lines have not reached the OpenTelemetry collector" in err
    assert "the agent tries for 15 minutes" in err
    receiver = make_receiver(away)
    wait_until(lambda: not waiting(tmp_path / "state"))
    assert receiver.bodies[0] == "a line"


def test_the_next_job_brings_what_a_killed_agent_has_left(start_job, away, make_receiver, wait_until, tmp_path):
    """If the agent is killed, too, the agent of the next job with this collector sends the lines."""
    job = start_job(
        "log.info('before')\n    while 'cannot be sent' not in open('job.log').read(): time.sleep(0.02)\n"
        "    from autogen_team._spool import journal\n    from autogen_team._ship import agent_link\n"
        f"    from pathlib import Path\n    place = agent_link.place_of(Path({str(tmp_path / 'state')!r}))\n"
        "    import psutil\n    for one in psutil.process_iter(['cmdline']):\n"
        "        if str(place) in (one.info['cmdline'] or []): one.kill()\n"
        "    os.kill(os.getpid(), 9)"
    )
    job.finish()
    assert len(waiting(tmp_path / "state")) == 1

    receiver = make_receiver(away)
    start_job("log.info('after')").finish()
    wait_until(lambda: not waiting(tmp_path / "state"))
    assert {"before", "after"} <= set(receiver.bodies)
    assert receiver.bodies.count("before") == 1


def test_without_an_agent_the_job_sends_its_lines(start_job, receiver, wait_until, tmp_path):
    """If no agent can be started, a thread of the job sends the lines, and the job leaves nothing behind."""
    no_agent = "from autogen_team._ship import agent_link, lines\nagent_link._AGENT = 'import sys; sys.exit(1)'\n"
    job = start_job(
        f"for n in range(3000): log.info('line {{}}', n)\n    {WAIT_FOR_END}\n    log.info('line of the end')",
        before=no_agent + "lines._PATIENCE = 0.5\n",
    )
    job.wait_for("logged")
    wait_until(lambda: "line 2999" in receiver.bodies)
    status, _, _ = job.finish("")

    assert status == 0
    assert [body for body in receiver.bodies if "line " in body] == [
        *(f"line {n}" for n in range(3000)),
        "line of the end",
    ]
    assert not waiting(tmp_path / "state")


def test_a_job_outlives_its_agent(start_job, receiver, wait_until, tmp_path):
    """If the agent is killed, the job starts another one, and each line arrives."""
    job = start_job(
        "for n in range(10**6):\n        log.info('line {}', n)\n        if n % 100 == 99:\n"
        "            print('logged', flush=True)\n            if sys.stdin.readline() == 'end\\n': break"
    )
    job.wait_for("logged")
    wait_until(lambda: "line 99" in receiver.bodies)
    place = str(agent_link.place_of(tmp_path / "state"))
    (agent,) = (one for one in psutil.process_iter(["cmdline"]) if place in (one.info["cmdline"] or []))
    agent.kill()
    job.popen.stdin.write("\n")
    job.popen.stdin.flush()
    job.wait_for("logged")
    wait_until(lambda: "line 199" in receiver.bodies)
    status, _, err = job.finish("end\n")

    assert status == 0, err
    assert set(receiver.bodies) >= {f"line {n}" for n in range(200)}


def test_lines_of_forked_children_arrive(start_job, receiver, wait_until):
    """A forked child has a journal of its own, with its process id."""
    job = start_job(
        "log.info('of the parent')\n    child = os.fork()\n    if not child:\n"
        "        log.info('of the child')\n        os._exit(0)\n    os.waitpid(child, 0)\n    print(child, flush=True)",
        # Since 3.12, Python warns of a fork while threads run, and the warning is a line.
        before="import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n",
    )
    _, out, _ = job.finish()
    wait_until(lambda: len(receiver.lines) == 2)

    assert sorted(receiver.bodies) == ["of the child", "of the parent"]
    assert {one["process.pid"] for one in receiver.resources} == {job.popen.pid, int(out)}


def test_the_oldest_lines_are_dropped_and_counted(away, make_receiver, monkeypatch, tmp_path, caplog, wait_until):
    """Beyond the limit, lines are dropped; the number in the warning is exactly that of the missing ones."""
    monkeypatch.setattr(journal, "SEGMENT", 2**14)
    monkeypatch.setattr(lines, "MOST", 2**17)
    service = service_to(tmp_path / "log.txt", intercept=False)
    with caplog.at_level(logging.WARNING, "autogen_team"):
        service.start()
        for number in range(3000):
            service.logger().info("line {}", number)
        wait_until(lambda: "cannot be sent" in caplog.text)
        on_disk = sum(path.stat().st_size for path in (tmp_path / "state" / journal.LINES).rglob("*.jsonl"))
        receiver = make_receiver(away)
        wait_until(lambda: "line 2999" in receiver.bodies)
        service.stop()

    assert on_disk <= 2**17
    missing = 3000 - len(receiver.lines)
    assert 0 < missing < 3000
    assert receiver.bodies[-1] == "line 2999"
    dropped = int(caplog.text.partition(" log lines did not reach")[0].split()[-1])
    assert 0 <= dropped - missing <= 2400  # those of the request that was under way count, too


def test_lines_that_the_collector_rejects_are_counted(receiver, tmp_path, caplog):
    """A final answer drops the lines of the request, says so once, and does not block later lines."""
    receiver.answers = [(400, b"")]
    with service_to(tmp_path / "log.txt", intercept=False) as service:
        service.logger().info("refused")

    assert "cannot be sent to the OpenTelemetry collector" in caplog.text
    assert "it answers 400 Bad Request" in caplog.text
    assert "1 log lines did not reach the OpenTelemetry collector" in caplog.text
    assert receiver.bodies == []


def test_lines_that_the_collector_rejects_in_part_are_counted(receiver, tmp_path, caplog):
    """A collector may accept a request and reject some of its lines."""
    answer = ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = 1
    answer.partial_success.error_message = "too old"
    receiver.answers = [(200, answer.SerializeToString())]
    with service_to(tmp_path / "log.txt", intercept=False) as service:
        service.logger().info("old")

    assert "it rejects lines: too old" in caplog.text
    assert "1 log lines did not reach the OpenTelemetry collector" in caplog.text


@pytest.mark.parametrize("status", [429, 503])
def test_a_collector_that_is_busy_is_asked_again(receiver, tmp_path, caplog, status):
    """A busy collector gets the same lines again, and nothing is lost."""
    receiver.answers = [(status, b"")]
    with service_to(tmp_path / "log.txt", intercept=False) as service:
        service.logger().info("a line")

    assert receiver.bodies == ["a line"]
    assert f"it answers {status}" in caplog.text
    assert "did not reach" not in caplog.text


def test_a_request_that_is_too_large_is_halved(start_job, receiver, wait_until, tmp_path):
    """If the collector finds a request too large, the lines go in smaller ones, in order."""
    receiver.most = 4000
    start_job("for n in range(200): log.info('line {}', n)").finish()
    wait_until(lambda: not waiting(tmp_path / "state"))
    assert receiver.bodies == [f"line {n}" for n in range(200)]


def test_the_disk_has_masked_lines_and_no_headers(away, tmp_path, wait_until, caplog):
    """Neither a secret in a line nor the headers for the collector are in the state folder."""
    service = service_to(tmp_path / "log.txt", intercept=False)
    service.start()
    service.logger().bind(api_key="example-secret").info("with {}", SECRET)
    wait_until(lambda: "cannot be sent" in caplog.text)
    found = [path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()]
    (folder,) = waiting(tmp_path / "state")
    (line,) = (entry for entry in reader.read(folder) if entry["op"] == "line")
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    service.stop()

    assert line["body"] == "with ***"
    assert line["values"]["api_key"] == "***"
    assert modes == {0o600}
    assert not [data for data in found for text in (SECRET, KEY, "example-secret") if text.encode() in data]


@pytest.mark.parametrize(
    "fields", [{}, {"serialize": True}, {"format": "{message}{extra[tail]}"}, {"format": "no message"}]
)
def test_messages_are_masked_with_every_format(receiver, tmp_path, fields):
    """The collector gets a masked message, whether or not the sink shows it."""
    with service_to(tmp_path / "log.txt", **fields) as service:
        service.logger().info("password=hunter2 and {}", SECRET)
        service.logger().info("nothing to hide")
        service.logger().bind(tail="x").info("{}", SECRET)
    assert receiver.bodies == ["password=*** and ***", "nothing to hide", "***"]


def test_any_value_can_be_sent(receiver, tmp_path):
    """Values of any type, lone surrogates and failing reprs neither raise nor lose the line."""

    class Bad:
        def __repr__(self) -> str:
            raise ValueError("no repr")

    with service_to(tmp_path / "log.txt") as service:
        log = service.logger()
        log.bind(numbers=[1, 2.5, None], nested={"a": True}, big=2**70, bad=Bad(), nothing=None).info("values")
        log.info("lone \udc80 surrogate")
        log.bind(line=7, severity="x").info("names")

    by_body = {line.body.string_value: line for line in receiver.lines}
    found = values(by_body["values"].attributes)
    assert [one.int_value or one.double_value for one in found["numbers"].values] == [1, 2.5, 0]
    assert found["big"] == str(2**70)
    assert "repr fails" in found["bad"]
    assert "nothing" not in found
    assert any("surrogate" in body for body in by_body)
    assert values(by_body["names"].attributes)["severity"] == "x"


def test_a_full_disk_costs_the_lines_only(receiver, tmp_path, caplog, monkeypatch):
    """Without space for the lines, the job goes on, and the lost lines are reported and counted."""
    blocked = tmp_path / "blocked"
    blocked.touch()
    monkeypatch.setenv("AUTOGEN_TEAM_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / journal.LINES).symlink_to(blocked)  # a file: no folder can be made in it
    with service_to(tmp_path / "log.txt", intercept=False) as service:
        for number in range(3):
            service.logger().info("line {}", number)

    assert "line 2" in (tmp_path / "log.txt").read_text()
    assert caplog.text.count("log lines cannot be kept for the OpenTelemetry collector") == 1
    assert "3 log lines did not reach the OpenTelemetry collector" in caplog.text


@pytest.mark.parametrize("compression", ["gzip", "deflate", "none", ""])
def test_requests_are_compressed_as_the_variables_say(receiver, tmp_path, monkeypatch, compression):
    """`OTEL_EXPORTER_OTLP_COMPRESSION` chooses the compression."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    with service_to(tmp_path / "log.txt") as service:
        service.logger().info("a line")
    assert receiver.bodies == ["a line"]
    assert receiver.headers[0].get("Content-Encoding", "none") == (compression or "none")


def test_variables_for_logs_take_precedence():
    """Each variable has a variant for logs; the target is complete."""
    general = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=1, b%20c=d%20e,broken",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "soon",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "client.pem",
    }
    found = collector.Target.of("logs", general)
    assert (found.url, found.headers) == ("https://collector/v1/logs", (("a", "1"), ("b c", "d e")))
    assert (found.timeout, found.verify, found.client) == (10.0, "ca.pem", "client.pem")
    logs = {"OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "2.5", "OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY": "key.pem"}
    found = collector.Target.of("logs", {**general, **logs})
    assert (found.timeout, found.client) == (2.5, ("client.pem", "key.pem"))
    assert "d e" not in repr(found)


def test_a_line_without_a_collector_is_an_error(monkeypatch, tmp_path):
    """The configuration is checked before anything is written."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        service_to(tmp_path / "log.txt").start()
    assert not waiting(tmp_path / "state")
