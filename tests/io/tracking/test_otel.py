"""OpenTelemetry: traces and log lines are sent to a collector, a real receiver that parses the protocol."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import mlflow
import pytest

from autogen_team._redact import mask
from autogen_team._ship import collector
from autogen_team.cli import _probes
from autogen_team.errors import ConfigurationError, ConfigurationWarning, MissingExtraError
from autogen_team.io.services import LoggerService
from testkit.receiver import KEY, Receiver, values

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")

SECRET = "correct-horse-battery"
SOON = 60.0


@pytest.fixture
def receiver(monkeypatch) -> Iterator[Receiver]:
    """Return a collector, named by the standard variables."""
    found = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.uri)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-api-key={KEY}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "trainer")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    monkeypatch.setenv("SOME_API_TOKEN", SECRET)
    yield found
    found.close()
    mlflow.tracing.reset()


@pytest.fixture
def silent(monkeypatch) -> Iterator[None]:
    """Set the standard variables to a collector that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield
    mlflow.tracing.reset()


def trace() -> str:
    """Log a trace with a secret, and return its id."""
    with mlflow.start_span("agent") as span, mlflow.start_span("chat") as inner:
        inner.set_inputs({"question": f"with {SECRET}", "api_key": "example-secret"})
    return span.trace_id


@pytest.mark.parametrize("durable", [True, False])
def test_traces_are_in_mlflow_and_in_the_collector(start_session, store_uri, receiver, durable):
    """With a collector, each span is stored in both places, once, masked, with the job's resource."""
    started = start_session(store_uri, durable=durable)
    trace_id = trace()
    started.stop()

    mlflow.set_tracking_uri(store_uri)
    found = mlflow.MlflowClient(store_uri).get_trace(trace_id)
    assert len(found.data.spans) == 2
    assert sorted(span.name for span in receiver.spans) == ["agent", "chat"]
    assert {span.trace_id.hex() for span in receiver.spans} == {trace_id.removeprefix("tr-")}
    (chat,) = (span for span in receiver.spans if span.name == "chat")
    assert '"question": "with ***"' in values(chat.attributes)["mlflow.spanInputs"]
    assert not [one for one in receiver.spans if SECRET in str(one) or "example-secret" in str(one)]
    assert receiver.resources[0]["service.name"] == "trainer"
    assert receiver.resources[0]["deployment.environment"] == "test"


def test_content_is_left_out_in_the_collector_too(start_session, store_uri, receiver):
    """With `mask_traces=content`, the collector gets no content either."""
    started = start_session(store_uri, mask_traces="content")
    trace()
    started.stop()

    assert sorted(span.name for span in receiver.spans) == ["agent", "chat"]
    assert "question" not in str(receiver.spans)


def test_log_lines_are_in_the_collector(start_session, store_uri, receiver, tmp_path):
    """A log line has severity, masked body, values, run, experiment, trace and span, and the resource."""
    started = start_session(store_uri)
    service = LoggerService(sink=tmp_path / "log.txt", otlp=True)
    with service, mlflow.start_run(run_name="train") as run:
        service.logger().bind(fold=3).warning("disk {}% full of {}", 91, SECRET)
        with mlflow.start_span("ask") as span:
            logging.getLogger("some.library").error("failed")
        try:
            raise ValueError(f"no {SECRET}")
        except ValueError:
            service.logger().exception("caught")
    started.stop()

    by_body = {line.body.string_value: line for line in receiver.lines}
    first = by_body["disk 91% full of ***"]
    assert (first.severity_text, first.severity_number) == ("WARNING", 13)
    assert values(first.attributes)["fold"] == 3
    assert values(first.attributes)["mlflow.run_id"] == run.info.run_id
    assert values(first.attributes)["mlflow.run_name"] == "train"
    assert abs(first.time_unix_nano / 1e9 - time.time()) < 600
    inner = by_body["failed"]
    assert inner.severity_number == 17
    assert values(inner.attributes)["logger.name"] == "some.library"
    assert inner.trace_id.hex() == span.trace_id.removeprefix("tr-")
    assert inner.span_id.hex() == span.span_id
    caught = values(by_body["caught"].attributes)
    assert caught["exception.type"] == "ValueError"
    assert "ValueError: no ***" in caught["exception.stacktrace"]
    assert SECRET not in str(receiver.lines)
    assert receiver.resources[0]["service.name"] == "trainer"


def test_headers_for_the_collector_are_secrets(receiver, monkeypatch):
    """The values of the headers are masked wherever they appear."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "authorization=Bearer%20abcdef-ghijkl-mnop")
    assert mask(f"x {KEY} y abcdef-ghijkl-mnop") == "x *** y ***"


@pytest.mark.parametrize("is_away", [True, False])
def test_a_collector_that_does_not_answer_does_not_delay_the_job(
    start_session, store_uri, silent, is_away, monkeypatch, free_port, tmp_path, caplog
):
    """Without an answer, traces are stored, lines are written, and the end waits for seconds only."""
    if is_away:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    started = start_session(store_uri)
    service = LoggerService(sink=tmp_path / "log.txt", otlp=True)
    service.start()
    trace_id = trace()
    service.logger().info("a line")
    begun = time.monotonic()
    started.stop()
    service.stop()

    assert time.monotonic() - begun < SOON / 2
    assert "a line" in (tmp_path / "log.txt").read_text()
    assert re.search(r"\d log lines have not reached the OpenTelemetry collector", caplog.text)
    mlflow.set_tracking_uri(store_uri)
    assert len(mlflow.MlflowClient(store_uri).get_trace(trace_id).data.spans) == 2


def test_an_outbox_is_bounded(monkeypatch, silent):
    """Beyond its limit, an outbox drops the oldest items, and counts them."""
    monkeypatch.setattr(collector, "MOST", 600)
    entered, go_on, sent = threading.Event(), threading.Event(), []

    class Exporter:
        def export(self, batch):
            entered.set()
            go_on.wait(SOON)
            sent.extend(batch)

        def shutdown(self):
            go_on.set()

    outbox = collector.Outbox("traces", Exporter(), lambda item: item)
    outbox.put(-1)
    assert entered.wait(SOON)
    for number in range(1000):
        outbox.put(number)
    assert outbox.lost == 400
    go_on.set()
    outbox.finish()
    assert sent == [-1, *range(400, 1000)]


def test_otlp_needs_a_collector(monkeypatch):
    """`otlp=True` without a collector is an error that names the variable."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        LoggerService(otlp=True).start()


def test_a_protocol_that_is_not_supported_is_named(receiver, monkeypatch, start_session, store_uri):
    """With gRPC, `otlp=True` is an error that says what to set, and traces go to MLflow only, after a warning."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigurationError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL='grpc'.*'http/protobuf'"):
        LoggerService(otlp=True).start()
    with pytest.warns(ConfigurationWarning, match="traces go to MLflow only"):
        started = start_session(store_uri)
    trace_id = trace()
    started.stop()
    mlflow.set_tracking_uri(store_uri)
    assert len(mlflow.MlflowClient(store_uri).get_trace(trace_id).data.spans) == 2


def test_without_the_extra_the_error_says_what_to_install(receiver, monkeypatch, start_session, store_uri):
    """Without the exporter, `otlp=True` is an error, and a collector of the environment a warning."""
    monkeypatch.setattr(collector, "_is_installed", lambda: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'autogen-team\[otel\]'"):
        LoggerService(otlp=True).start()
    with pytest.warns(ConfigurationWarning, match="autogen-team"):
        started = start_session(store_uri)
    trace_id = trace()
    started.stop()
    mlflow.set_tracking_uri(store_uri)
    assert mlflow.MlflowClient(store_uri).get_trace(trace_id)


def test_doctor_probes_the_collector(receiver, monkeypatch):
    """`doctor` sends an empty request to the collector, with its headers."""
    checks = [probe() for probe in _probes.collector_probes(LoggerService(otlp=True))]
    assert [(check.name, check.outcome) for check in checks] == [
        ("collector of traces", "ok"),
        ("collector of logs", "ok"),
    ]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=wrong")
    (check,) = (probe() for probe in _probes.collector_probes(LoggerService()))
    assert (check.outcome, "401" in check.found) == ("fail", True)


def test_the_exporter_is_not_loaded_without_a_collector():
    """A job without a collector does not load the exporter."""
    code = (
        "import sys; from autogen_team.io.services import LoggerService\n"
        "with LoggerService(): print(any('exporter.otlp' in name for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
