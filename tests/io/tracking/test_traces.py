"""Traces sent to a store: secrets are masked, and a dead store does not delay the process."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.tracing.client import TracingClient
from mlflow.tracing.provider import provider

from autogen_team._capture import redact_traces, trace_sums, traces
from autogen_team._ship import mlflow_backend, stored_sums
from autogen_team.errors import ConfigurationError, ConfigurationWarning
from autogen_team.io.services import MlflowService

HEADER = "Bearer example-secret-header"
INPUTS = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
KNOWN = "correct-horse-battery"


@pytest.fixture(autouse=True)
def tracing_as_it_was(monkeypatch):
    """Set a known secret, and reset MLflow's tracing after the test."""
    monkeypatch.setenv("SOME_API_TOKEN", KNOWN)
    yield
    mlflow.tracing.reset()


def trace(*, name: str = "ask") -> str:
    """Log a trace with a secret in each of its parts, and return its id."""
    with pytest.raises(ValueError), mlflow.start_span(f"{name} {KNOWN}") as span:
        span.set_inputs(
            {**INPUTS, "extra_headers": {"Authorization": HEADER, "X-Other": HEADER}, "cookie": "example-secret"}
        )
        span.set_attribute("api_key", "example-secret")
        mlflow.update_current_trace(
            tags={"password": "example-secret", "note": f"with {KNOWN}"}, metadata={"api_key": "example-secret"}
        )
        span.set_outputs({"echo": '{"api_key": "example-secret"}', "total_tokens": 7})
        raise ValueError(f"refused: {{'Authorization': '{HEADER}'}} {KNOWN}")
    return span.trace_id


def stored(uri: str, trace_id: str) -> mlflow.entities.Trace:
    """Return a trace from the store."""
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri).get_trace(trace_id)


def files_with_secrets(folder: Path) -> list[Path]:
    """Return the files that contain one of the secrets."""
    secrets = (b"example-secret", KNOWN.encode())
    return [path for path in folder.rglob("*") if path.is_file() and any(s in path.read_bytes() for s in secrets)]


def test_no_part_of_a_trace_is_stored_with_a_secret(start_session, store_uri, tmp_path):
    """No part of a trace is stored with a secret, and all other content is unchanged."""
    session = start_session(store_uri)
    with mlflow.start_run() as run:
        trace_id = trace()
    session.stop()

    assert files_with_secrets(tmp_path) == []
    found = stored(store_uri, trace_id)
    span = found.data.spans[0]
    headers = {"Authorization": "***", "X-Other": "***"}
    assert span.inputs == {**INPUTS, "extra_headers": headers, "cookie": "***"}
    assert span.outputs == {"echo": '{"api_key": "***"}', "total_tokens": 7}
    assert span.get_attribute("api_key") == "***"
    assert span.name == "ask ***"
    assert span.events[0].attributes["exception.type"] == "ValueError"
    assert "refused" in span.events[0].attributes["exception.stacktrace"]
    assert found.info.tags["note"] == "with ***"
    assert found.info.trace_metadata["mlflow.sourceRun"] == run.info.run_id
    assert found.info.request_preview == "hello"


def test_a_real_server_gets_no_secret(start_session, mlflow_server):
    """A real server, which gets spans as OpenTelemetry messages, gets no secret."""
    session = start_session(mlflow_server)
    trace_id = trace()
    session.stop()

    found = stored(mlflow_server, trace_id)
    text = found.to_json()
    assert "example-secret" not in text
    assert KNOWN not in text
    assert found.data.spans[0].inputs["max_tokens"] == 5


def test_a_store_that_keeps_spans_as_files_gets_no_secret(start_session, tmp_path):
    """A file store, which keeps spans as files, gets no secret."""
    folder = tmp_path / "store"
    with pytest.warns(ConfigurationWarning):
        session = start_session(folder.as_uri())
    trace()
    session.stop()

    assert list(folder.rglob("traces.json"))
    assert files_with_secrets(folder) == []


def test_a_span_of_opentelemetry_is_masked(start_session, store_uri, tmp_path):
    """A span of plain OpenTelemetry, which is not one of MLflow's, is masked."""
    session = start_session(store_uri)
    with provider.get_or_init_tracer("other").start_as_current_span("call") as span:
        span.set_attribute("http.request.header.authorization", [HEADER])
        span.set_attribute("url", "https://bob:example-secret@host/")
    session.stop()

    assert files_with_secrets(tmp_path) == []
    mlflow.set_tracking_uri(store_uri)
    experiment = mlflow.get_experiment_by_name("tests")
    assert (
        mlflow.search_traces(locations=[experiment.experiment_id], return_type="list")[0].data.spans[0].name == "call"
    )


def test_a_tag_that_is_set_later_is_masked(start_session, store_uri, tmp_path):
    """A tag that is set after the end of its trace is masked."""
    session = start_session(store_uri)
    with mlflow.start_span("ask") as span:
        pass
    traces.mlflow_internals.wait_for_traces()
    mlflow.set_trace_tag(span.trace_id, "note", f"with {KNOWN}")
    mlflow.set_trace_tag(span.trace_id, "stage", "final")
    session.stop()

    assert files_with_secrets(tmp_path) == []
    tags = stored(store_uri, span.trace_id).info.tags
    assert (tags["note"], tags["stage"]) == ("with ***", "final")


def test_a_span_without_secrets_is_passed_on_as_it_is(start_session, store_uri, monkeypatch):
    """A span without secrets is passed on without a copy."""
    session = start_session(store_uri)
    monkeypatch.setattr(traces.mlflow_internals, "span_of", None)
    with mlflow.start_span("ask") as span:
        span.set_inputs(INPUTS)
    session.stop()

    assert stored(store_uri, span.trace_id).data.spans[0].inputs == INPUTS


def test_processors_of_the_job_work_and_stay(start_session, store_uri):
    """Span processors of the job see unmasked spans, whether configured before or after the start, and stay."""
    seen = []

    def first(span):
        seen.append(("first", span.inputs["extra_headers"]["Authorization"]))

    def second(span):
        seen.append(("second", span.inputs["extra_headers"]["Authorization"]))
        span.set_attribute("mine", "yes")

    mlflow.tracing.configure(span_processors=[first])
    session = start_session(store_uri)
    trace()
    mlflow.tracing.configure(span_processors=[second])
    trace_id = trace()
    session.stop()

    assert seen == [("first", HEADER), ("second", HEADER)]
    assert mlflow.tracing.config.get_config().span_processors == [second]
    span = stored(store_uri, trace_id).data.spans[0]
    assert span.get_attribute("mine") == "yes"
    assert span.inputs["extra_headers"]["Authorization"] == "***"


def test_content_that_cannot_be_masked_is_withheld(start_session, store_uri, tmp_path, monkeypatch, caplog):
    """If masking fails, the content of a trace is withheld, its times and run are stored, and one warning says so."""
    session = start_session(store_uri)

    def fail(*_):
        raise RuntimeError(f"broken by {KNOWN}")

    for name in ("span", "tag", "excerpt"):
        monkeypatch.setattr(redact_traces.Masker, name, fail)
    with mlflow.start_run() as run:
        trace()
        trace_id = trace()
    session.stop()
    monkeypatch.undo()

    assert files_with_secrets(tmp_path / "work") == []
    found = stored(store_uri, trace_id)
    span = found.data.spans[0]
    assert span.inputs == span.outputs == found.info.request_preview == traces.WITHHELD
    assert found.info.trace_metadata["mlflow.sourceRun"] == run.info.run_id
    assert span.end_time_ns > span.start_time_ns
    warnings = [record.getMessage() for record in caplog.records if "withheld" in record.getMessage()]
    assert warnings == [
        "the content of a trace could not be searched for secrets and is withheld: RuntimeError: broken by ***"
    ]


def test_a_span_that_cannot_be_read_is_left_out(start_session, store_uri, monkeypatch):
    """A span that can be neither masked nor stripped is left out of its trace."""
    session = start_session(store_uri)

    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(traces.Taps, "_masked_span", fail)
    monkeypatch.setattr(traces, "_bare_span", fail)
    trace_id = trace()
    session.stop()

    mlflow.set_tracking_uri(store_uri)
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    (found,) = mlflow.MlflowClient(store_uri).search_traces(locations=[experiment], include_spans=False)
    assert (found.info.trace_id, found.data.spans) == (trace_id, [])


def test_masking_can_be_switched_off(start_session, store_uri):
    """Without `mask_traces`, a trace is stored as the job has logged it."""
    session = start_session(store_uri, mask_traces=False)
    trace_id = trace()
    session.stop()

    assert stored(store_uri, trace_id).data.spans[0].inputs["extra_headers"]["Authorization"] == HEADER


CHAT = {
    "mlflow.llm.model": "gpt-4o-mini",
    "mlflow.llm.provider": "openai",
    "mlflow.chat.tokenUsage": {"input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500},
}


def test_content_can_be_left_out(start_session, store_uri, tmp_path):
    """With `content`, inputs, outputs, events and excerpts are left out; names, times, tokens, cost and status stay."""
    session = start_session(store_uri, mask_traces="content")
    with pytest.raises(ValueError), mlflow.start_span("ask") as span:
        span.set_inputs({"question": "a question"})
        span.set_outputs("an answer")
        span.set_attribute("gen_ai.prompt.0.content", "a question")
        span.set_attribute("temperature", 0.25)
        for name, value in CHAT.items():
            span.set_attribute(name, value)
        mlflow.update_current_trace(tags={"stage": "one"})
        raise ValueError("an answer")
    session.stop()

    found = stored(store_uri, span.trace_id)
    texts = found.to_json()
    assert "question" not in texts
    assert "an answer" not in texts
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"a question" in path.read_bytes()]
    (only,) = found.data.spans
    assert (only.name, only.inputs, only.outputs, only.events) == ("ask", None, None, [])
    assert only.get_attribute("mlflow.chat.tokenUsage")["total_tokens"] == 1500
    assert only.get_attribute("temperature") == 0.25
    assert str(only.status.status_code) == "SpanStatusCode.ERROR"
    assert only.end_time_ns > only.start_time_ns
    assert found.info.tags["stage"] == "one"
    assert found.info.token_usage["total_tokens"] == 1500


@pytest.mark.parametrize(
    ("given", "meant"), [(True, "secrets"), (False, "off"), ("true", "secrets"), ("0", "off"), ("Content", "content")]
)
def test_the_setting_also_accepts_booleans(given, meant, monkeypatch):
    """`mask_traces` accepts its three words and booleans, as an argument and as a variable."""
    assert MlflowService(mask_traces=given).mask_traces == meant
    monkeypatch.setenv("AUTOGEN_TEAM_MLFLOW_MASK_TRACES", str(given))
    assert MlflowService().mask_traces == meant


def test_a_bad_value_of_the_setting_is_named(monkeypatch):
    """The error names the invalid value and the variable."""
    monkeypatch.setenv("AUTOGEN_TEAM_MLFLOW_MASK_TRACES", "some")
    with pytest.raises(ConfigurationError, match=r"(?s)AUTOGEN_TEAM_MLFLOW_MASK_TRACES.*'secrets'") as caught:
        MlflowService()
    assert "some" in str(caught.value)


@pytest.mark.parametrize("durable", [True, False])
def test_sums_of_tokens_and_cost_become_metrics_of_the_run(start_session, store_uri, durable):
    """At its end a run gets the sums of its traces; a span that repeats the sum of its children counts once."""
    session = start_session(store_uri, durable=durable)
    with mlflow.start_run() as run:
        for _ in range(2):
            with mlflow.start_span("agent") as agent, mlflow.start_span("chat", span_type="CHAT_MODEL") as chat:
                for name, value in CHAT.items():
                    chat.set_attribute(name, value)
                agent.set_attribute("mlflow.chat.tokenUsage", CHAT["mlflow.chat.tokenUsage"])
        with mlflow.start_span("priced") as span:
            span.set_attribute("mlflow.llm.cost", {"input_cost": 0.5, "output_cost": 0.5, "total_cost": 1.0})
    with mlflow.start_run() as other:
        mlflow.log_metric("loss", 1)
    session.stop()

    client = mlflow.MlflowClient(store_uri)
    metrics = client.get_run(run.info.run_id).data.metrics
    experiment = client.get_experiment_by_name("tests").experiment_id
    shown = sum((one.info.cost or {}).get("total_cost", 0.0) for one in client.search_traces(locations=[experiment]))
    assert metrics.pop("trace.cost") == pytest.approx(shown)
    assert shown > 1.0
    assert metrics == {
        "trace.count": 3,
        "trace.input_tokens": 2000,
        "trace.output_tokens": 1000,
        "trace.total_tokens": 3000,
    }
    assert client.get_run(other.info.run_id).data.metrics == {"loss": 1}


def priced_trace() -> None:
    """Log a trace that took 1500 tokens and 1 USD."""
    with mlflow.start_span("priced") as span:
        span.set_attribute("mlflow.llm.cost", {"input_cost": 0.5, "output_cost": 0.5, "total_cost": 1.0})
        span.set_attribute("mlflow.chat.tokenUsage", CHAT["mlflow.chat.tokenUsage"])


def sums_of(uri: str, run_id: str) -> dict[str, float]:
    """Return the number of traces, the tokens and the cost that a run has as metrics."""
    metrics = mlflow.MlflowClient(uri).get_run(run_id).data.metrics
    return {name: metrics.get(f"trace.{name}") for name in ("count", "total_tokens", "cost")}


@pytest.mark.parametrize("durable", [True, False])
def test_traces_that_end_after_their_run_count_too(start_session, store_uri, durable):
    """A trace that ends after its run is added to the sums when the service stops."""
    session = start_session(store_uri, durable=durable)
    with mlflow.start_run() as run:
        priced_trace()
        late = mlflow.start_span_no_context("late")
        late.set_attribute("mlflow.chat.tokenUsage", CHAT["mlflow.chat.tokenUsage"])
    late.end()
    session.stop()

    assert sums_of(store_uri, run.info.run_id) == {"count": 2, "total_tokens": 3000, "cost": 1.0}


@pytest.mark.parametrize("durable", [True, False])
def test_a_resumed_run_has_the_sums_of_all_its_starts(start_session, mlflow_server, durable):
    """Sums of a run that was resumed, perhaps in another process, include the traces of its earlier starts."""
    first = start_session(mlflow_server, durable=durable, experiment_name=f"resumed-{durable}")
    with mlflow.start_run() as run:
        priced_trace()
    first.stop()
    trace_sums.forget()  # as another process would begin
    second = start_session(mlflow_server, durable=durable, experiment_name=f"resumed-{durable}")
    with mlflow.start_run(run_id=run.info.run_id):
        priced_trace()
    second.stop()

    assert sums_of(mlflow_server, run.info.run_id) == {"count": 2, "total_tokens": 3000, "cost": 2.0}


def test_sums_in_the_store_leave_out_traces_of_other_runs(start_session, store_uri, monkeypatch):
    """The store's sums of a run cover all pages of its traces, and none that was recorded elsewhere and linked."""
    monkeypatch.setattr(stored_sums, "_PAGE", 2)
    session = start_session(store_uri)
    with mlflow.start_run() as run:
        for _ in range(5):
            priced_trace()
    priced_trace()
    mlflow.MlflowClient().link_traces_to_run([mlflow.get_last_active_trace_id()], run.info.run_id)
    session.stop()

    found = stored_sums.of_run(mlflow_backend.plain_store(store_uri), run.info.experiment_id, run.info.run_id)
    assert (found["trace.count"], found["trace.cost"]) == (5, 5.0)


def test_masking_ends_with_the_last_service(start_session, store_uri, tmp_path):
    """Masking lasts until the last service that asks for it stops; then MLflow's client is restored."""
    before = TracingClient.start_trace, TracingClient.log_spans
    first = start_session(store_uri)
    second = start_session(store_uri, mask_traces=False)
    first_id = trace()
    assert TracingClient.start_trace is not before[0]
    second.stop()
    trace()
    first.stop()

    assert (TracingClient.start_trace, TracingClient.log_spans) == before
    assert files_with_secrets(tmp_path) == []
    assert stored(store_uri, first_id).data.spans


@pytest.mark.parametrize("durable", [True, False])
def test_a_silent_server_does_not_delay_the_stop(start_session, server, durable, caplog):
    """A hung server delays `stop` by less than 20 s; without a journal, lost traces are counted in one message."""
    session = start_session(server.uri, durable=durable, flush_timeout=2.0)
    trace()
    traces.mlflow_internals.wait_for_traces()
    server.send(signal.SIGSTOP)
    for _ in range(30):
        trace()
    begun = time.monotonic()
    session.stop()
    seconds = time.monotonic() - begun
    server.send(signal.SIGCONT)

    assert seconds < 20
    lost = [record.getMessage() for record in caplog.records if "traces are lost" in record.getMessage()]
    assert lost == ([] if durable else [f"30 traces are lost: the MLflow store at {server.uri} did not accept them"])
    assert ("they wait in" in caplog.text) == durable
    assert not [one for one in threading.enumerate() if one.name == "autogen-team-traces"]


def test_a_process_with_a_hung_server_ends_in_time(start_python, server, tmp_path):
    """A process that has traced to a hung server ends within 30 s."""
    code = (
        "import sys, mlflow\n"
        "from autogen_team.io.services import MlflowService\n"
        "service = MlflowService(tracking_uri=sys.argv[1], autolog_disable=True, flush_timeout=1, connect_timeout=20)\n"
        "service.start()\n"
        "mlflow.start_span('first').__enter__()\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for _ in range(30):\n"
        "    with mlflow.start_span('ask'): pass\n"
        "service.stop()\n"
    )
    process = start_python("-c", code, server.uri, stdin=-1)
    process.wait_for("ready")
    server.send(signal.SIGSTOP)
    begun = time.monotonic()
    status, _, err = process.finish("go\n")
    server.send(signal.SIGCONT)

    assert status == 0, err
    assert time.monotonic() - begun < 30


def test_after_a_stop_that_gave_up_tracing_continues(start_session, server, store_uri):
    """After a stop that gave up on traces, plain MLflow stores new traces."""
    session = start_session(server.uri, durable=False, flush_timeout=0.5)
    server.send(signal.SIGSTOP)
    trace()
    session.stop()
    server.send(signal.SIGCONT)
    mlflow.set_tracking_uri(store_uri)
    with mlflow.start_span("later") as span:
        pass
    mlflow.flush_trace_async_logging()

    assert stored(store_uri, span.trace_id).data.spans[0].name == "later"


def test_a_refused_trace_raises_and_is_counted(start_session, mlflow_server, caplog):
    """Without a journal, a trace that the store refuses raises MLflow's exception, and is counted as lost."""
    session = start_session(mlflow_server, durable=False)
    trace_id = trace()
    traces.mlflow_internals.wait_for_traces()
    info = TracingClient(mlflow_server).get_trace_info(trace_id)
    info.trace_location.mlflow_experiment.experiment_id = "987654321"
    with pytest.raises(mlflow.exceptions.MlflowException, match="987654321"):
        TracingClient(mlflow_server).start_trace(info)
    session.stop()

    assert f"1 traces are lost: the MLflow store at {mlflow_server} did not accept them" in caplog.messages


def test_at_interpreter_exit_traces_are_stored_directly(start_session, mlflow_server, monkeypatch):
    """If no thread can be started, as at interpreter shutdown, traces are stored directly."""
    session = start_session(mlflow_server, durable=False)
    trace_id = trace()
    traces.mlflow_internals.wait_for_traces()

    def fail(_thread: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", fail)
    info = TracingClient(mlflow_server).get_trace_info(trace_id)
    assert TracingClient(mlflow_server).start_trace(info).trace_id == trace_id
    monkeypatch.undo()
    session.stop()
