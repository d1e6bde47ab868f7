"""Traces in the journal: outages, kills, reads, and the requests of the stores."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracing.attachments import Attachment

from autogen_team._capture import lifecycle, mlflow_internals, write_behind
from autogen_team._ship import mlflow_backend, rest_backend
from autogen_team._ship.backend import Refused, Unreachable
from autogen_team._spool import index, reader
from autogen_team._sync import offline_store
from autogen_team.io.services import MlflowService

SOON = 120.0
"""Time limit of the agent in seconds."""
SPANS = 3

JOB = """
import sys, mlflow
from autogen_team.io.services import MlflowService

def trace(number):
    with mlflow.start_span("agent") as agent:
        agent.set_inputs({"number": number})
        for name in ("chat", "tool"):
            with mlflow.start_span(name) as span:
                span.set_outputs(name)

service = MlflowService(connect_timeout=30, autolog_disable=True, experiment_name="kills", snapshot=False)
service.start()
mlflow.start_run()
trace(-1)
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    trace(number)
mlflow.flush_trace_async_logging()
print("ended", flush=True)
for number in range(40, 10**9):
    trace(number)
"""


@pytest.fixture(autouse=True)
def tracing_as_it_was():
    """Reset MLflow's tracing after the test."""
    yield
    mlflow.tracing.reset()


def trace(name: str = "agent") -> str:
    """Log a trace of three spans, and return its id."""
    with mlflow.start_span(name) as span:
        span.set_inputs({"question": "how?"})
        for child in ("chat", "tool"):
            with mlflow.start_span(child) as inner:
                inner.set_outputs({"from": child})
        span.set_outputs("so")
    return span.trace_id


def stored(client: mlflow.MlflowClient, experiment: str = "tests") -> list[mlflow.entities.Trace]:
    """Return the traces of an experiment."""
    found = client.get_experiment_by_name(experiment)
    return list(client.search_traces(locations=[found.experiment_id], max_results=500))


@pytest.mark.parametrize("server_is", ["there", "away", "silent"])
def test_a_killed_job_loses_no_trace_that_has_ended(server, start_python, server_is, tmp_path, wait_until):
    """All traces that had ended before SIGKILL arrive once and whole, in any state of the server."""
    process = start_python("-c", JOB, stdin=-1, MLFLOW_TRACKING_URI=server.uri)
    process.wait_for("ready")
    if server_is == "away":
        server.kill()
    elif server_is == "silent":
        server.send(signal.SIGSTOP)
    process.popen.stdin.write("go\n")
    process.popen.stdin.flush()
    process.wait_for("ended")
    process.send(signal.SIGKILL)
    process.finish()
    if server_is == "away":
        server.start()
    elif server_is == "silent":
        server.send(signal.SIGCONT)
    wait_until(lambda: index.find(tmp_path / "state") == [], timeout=SOON)

    found = [one for one in stored(server.client(), "kills") if one.info.state == "OK"]
    numbers = sorted(json.loads(one.data.request)["number"] for one in found)
    assert numbers == list(range(-1, len(numbers) - 1))
    assert len(numbers) >= 41
    assert {len(one.data.spans) for one in found} == {SPANS}
    assert not (tmp_path / "state" / "refused.jsonl").exists()


COUNTING_JOB = """
import os, signal, sys, mlflow
from autogen_team.io.services import MlflowService

service = MlflowService(
    connect_timeout=30, autolog_disable=True, experiment_name="kills", snapshot=False, mask_traces="content"
)
service.start()
mlflow.start_run()
print("ready", flush=True)
for _ in range(2):
    sys.stdin.readline()
    for _ in range(3):
        with mlflow.start_span("agent"), mlflow.start_span("chat", span_type="CHAT_MODEL") as chat:
            chat.set_attribute("mlflow.llm.cost", {"input_cost": 0.2, "output_cost": 0.05, "total_cost": 0.25})
            chat.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 4, "output_tokens": 1, "total_tokens": 5})
    mlflow.flush_trace_async_logging()
    print("delivered" if service.flush() else "waiting", flush=True)
    sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["database", "server", "outage"])
def test_a_killed_run_has_the_sums_of_its_traces(server, start_python, store_uri, kind, tmp_path, wait_until):
    """Recovery logs the sums of all traces of a run, of those that were delivered before SIGKILL as well."""
    uri = store_uri if kind == "database" else server.uri
    process = start_python("-c", COUNTING_JOB, stdin=-1, MLFLOW_TRACKING_URI=uri)

    def go_on() -> None:
        process.popen.stdin.write("go\n")
        process.popen.stdin.flush()

    process.wait_for("ready")
    go_on()
    process.wait_for("delivered")
    if kind == "outage":
        server.kill()
    go_on()
    go_on()
    process.wait_for("waiting" if kind == "outage" else "delivered")
    process.finish("go\n")
    if kind == "outage":
        server.start()
    wait_until(lambda: index.find(tmp_path / "state") == [], timeout=SOON)

    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("kills").experiment_id])
    assert run.info.status == "KILLED"
    assert run.data.metrics == {
        "trace.count": 6,
        "trace.input_tokens": 24,
        "trace.output_tokens": 6,
        "trace.total_tokens": 30,
        "trace.cost": 1.5,
    }


def test_an_outage_loses_no_trace_and_keeps_its_run(server, start_session):
    """Traces of a run begun in an outage arrive under the run's id in the store, with tags set meanwhile."""
    started = start_session(server.uri)
    first = trace("before")
    server.kill()
    with lifecycle.open_run(name="train") as run:
        found = trace("during")
        mlflow.set_trace_tag(found, "stage", "waiting")
        server.start()
        last = trace("after")
    started.stop()

    client = server.client()
    experiment = client.get_experiment_by_name("tests").experiment_id
    (real,) = client.search_runs([experiment])
    assert run.info.run_id != real.info.run_id
    assert {one.info.trace_id for one in stored(client)} == {first, found, last}
    assert client.get_trace(found).info.trace_metadata["mlflow.sourceRun"] == real.info.run_id
    assert client.get_trace(found).info.tags["stage"] == "waiting"
    assert len(client.get_trace(found).data.spans) == SPANS
    of_run = client.search_traces(locations=[experiment], run_id=real.info.run_id)
    assert {one.info.trace_id for one in of_run} == {found, last}


@pytest.mark.parametrize("kind", ["database", "server"])
def test_a_store_gets_the_same_as_from_plain_mlflow(start_session, store_uri, mlflow_server, kind):
    """A trace sent through the journal equals one sent by plain MLflow, except ids and times."""
    uri = store_uri if kind == "database" else mlflow_server

    def send() -> dict:
        with mlflow.start_span("agent", span_type="AGENT", attributes={"temperature": 0.5, "deep": {"a": [1, None]}}):
            with mlflow.start_span("chat", span_type="CHAT_MODEL") as span:
                span.set_inputs({"messages": [{"role": "user", "content": "wie geht's? \u2026"}]})
                span.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7})
                span.add_event(mlflow.entities.SpanEvent("retry", attributes={"after": 1.5, "kind": "rate"}))
            with pytest.raises(ValueError), mlflow.start_span("tool"):
                raise ValueError("no")
            mlflow.update_current_trace(tags={"stage": "one"}, metadata={"who": "ada"})
            trace_id = mlflow.get_current_active_span().trace_id
        mlflow.flush_trace_async_logging()
        return comparable(mlflow.MlflowClient(uri).get_trace(trace_id))

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("tests")
    plain = send()
    started = start_session(uri)
    ours = send()
    started.stop()

    assert ours == plain


def comparable(found: mlflow.entities.Trace) -> dict:
    """Return the content of a trace, without values that differ between traces."""
    info = found.info
    metadata = {key: value for key, value in info.trace_metadata.items() if "git" not in key and key != "mlflow.user"}
    tags = {key: value for key, value in info.tags.items() if key != "mlflow.artifactLocation"}
    spans = {
        span.name: (
            span.span_type,
            span.inputs,
            span.outputs,
            {key: value for key, value in span.attributes.items() if key != "mlflow.traceRequestId"},
            str(span.status.status_code),
            span.status.description,
            [
                (event.name, {key: value for key, value in event.attributes.items() if "stacktrace" not in key})
                for event in span.events
            ],
            span.parent_id is None,
        )
        for span in found.data.spans
    }
    sizes = {key: value for key, value in metadata.items() if "size" not in key.lower()}
    return {"spans": spans, "tags": tags, "metadata": sizes, "state": info.state, "preview": info.request_preview}


def test_a_read_sees_the_traces_that_have_ended(start_session, mlflow_server):
    """Right after a trace has ended, it can be found, read, assessed, tagged and deleted."""
    started = start_session(mlflow_server, experiment_name="reads")
    client = mlflow.MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("reads").experiment_id
    found = trace()
    assert [one.info.trace_id for one in client.search_traces(locations=[experiment])] == [found]
    read = trace()
    assert len(mlflow.get_trace(read).data.spans) == SPANS
    assessed = trace()
    mlflow.log_feedback(trace_id=assessed, name="good", value=True)
    assert mlflow.get_trace(assessed).info.assessments[0].name == "good"
    untagged = trace()
    client.set_trace_tag(untagged, "stage", "one")
    client.delete_trace_tag(untagged, "stage")
    assert "stage" not in client.get_trace(untagged).info.tags
    deleted = trace()
    assert client.delete_traces(experiment, trace_ids=[deleted]) == 1
    started.stop()


def test_a_tag_of_an_unknown_trace_is_refused_at_the_call(start_session, store_uri):
    """A tag of an unknown trace raises MLflow's own error."""
    started = start_session(store_uri)
    with pytest.raises(MlflowException, match="tr-unknown"):
        mlflow.set_trace_tag("tr-unknown", "stage", "one")
    started.stop()


def test_links_to_prompts_go_through_the_journal_too(start_session, server):
    """A trace is linked to its prompt, although the server was down when the trace ended."""
    started = start_session(server.uri)
    mlflow.genai.register_prompt("greeting", "Hello {{name}}")
    server.kill()
    with mlflow.start_span("ask") as span:
        loaded = mlflow.entities.model_registry.PromptVersion("greeting", 1, "Hello {{name}}")
        mlflow_internals_of_prompts(span.trace_id, loaded)
    mlflow.flush_trace_async_logging()
    server.start()
    started.stop()

    tags = server.client().get_trace(span.trace_id).info.tags
    assert json.loads(tags["mlflow.linkedPrompts"]) == [{"name": "greeting", "version": "1"}]


def mlflow_internals_of_prompts(trace_id: str, prompt: object) -> None:
    """Record that a trace has used a prompt, as `mlflow.genai.load_prompt` does inside a span."""
    from mlflow.tracing.trace_manager import InMemoryTraceManager

    InMemoryTraceManager.get_instance().register_prompt(trace_id, prompt)


@pytest.mark.parametrize("kind", ["database", "server"])
def test_attachments_are_stored_with_their_trace(start_session, store_uri, server, kind, wait_until):
    """An image in the inputs of a span is stored with its trace, also after an outage."""
    uri = store_uri if kind == "database" else server.uri
    started = start_session(uri)
    trace()
    if kind == "server":
        server.kill()
    with mlflow.start_span("look") as span:
        span.set_inputs({"image": Attachment(content_type="image/png", content_bytes=b"png" * 1000)})
    mlflow.flush_trace_async_logging()
    if kind == "server":
        server.start()
    started.stop()

    client = mlflow.MlflowClient(uri)
    info = client.get_trace(span.trace_id).info
    files = mlflow.artifacts.list_artifacts(f"{info.tags['mlflow.artifactLocation']}/attachments", tracking_uri=uri)
    assert [one.file_size for one in files] == [3000]


def test_values_of_an_opentelemetry_span_are_written(start_session, store_uri):
    """Values that JSON lacks do not keep a span from being stored."""
    started = start_session(store_uri)
    with mlflow_internals.provider.provider.get_or_init_tracer("other").start_as_current_span("call") as span:
        span.set_attribute("list", [1.5, 2.5])
        span.set_attribute("text", "a lone surrogate: \udcff")
        span.add_event("odd", {"nan": float("nan"), "bytes": b"\xff", "big": 2**63})
    started.stop()

    (found,) = stored(mlflow.MlflowClient(store_uri))
    assert found.data.spans[0].get_attribute("list") == [1.5, 2.5]


def test_offline_jobs_keep_their_traces(free_port, tmp_path):
    """An offline job has its traces in the store of offline runs."""
    uri = f"http://127.0.0.1:{free_port()}"
    service = MlflowService(tracking_uri=uri, mode="offline", autolog_disable=True, experiment_name="tests")
    with service, service.run_context(service.RunConfig(name="train", log_system_metrics=False)) as run:
        trace()

    client = mlflow.MlflowClient(offline_store.store_uri(tmp_path / "state", uri))
    (found,) = stored(client)
    assert found.info.trace_metadata["mlflow.sourceRun"] == run.info.run_id
    assert len(found.data.spans) == SPANS


def test_a_refused_trace_is_set_aside(start_session, mlflow_server, tmp_path, caplog):
    """A trace for an experiment that does not exist goes to `refused.jsonl`, and the next one is stored."""
    started = start_session(mlflow_server, experiment_name="refusals")
    client = mlflow.tracing.client.TracingClient(mlflow_server)
    info = client.get_trace_info(trace())
    info.trace_location.mlflow_experiment.experiment_id = "987654321"
    client.start_trace(info)
    last = trace()
    with caplog.at_level(logging.ERROR):
        started.stop()

    # a repeated delivery, because the server was busy, is noted again
    refused = [json.loads(line) for line in (tmp_path / "state" / "refused.jsonl").read_text().splitlines()]
    assert {(one["op"], one["info"]["trace_id"]) for one in refused} == {("trace", info.trace_id)}
    assert "987654321" in refused[0]["reason"]
    assert "rejected an item of a trace" in caplog.text
    assert mlflow.MlflowClient(mlflow_server).get_trace(last)


def backends(database: str, server: str) -> list:
    """Return the backends for a database and for a server, as the agent makes them."""
    mlflow_backend.plain_store(server)
    login = mlflow_backend.login_of(server)
    return [
        mlflow_backend.of(mlflow_backend.plain_store(database), database),
        rest_backend.Server(rest_backend.sender(lambda: login)),
    ]


def entries_of(start_session, uri: str) -> list[dict]:
    """Return the journal entries of a trace."""
    started = start_session(uri)
    one = write_behind.of(uri)
    one.shipper.pause(60.0)
    try:
        trace()
        mlflow.flush_trace_async_logging()
        found = reader.read(one.journal.folder)
    finally:
        one.shipper.resume()
    started.stop()
    return [entry for entry in found if entry["op"] in ("spans", "trace")]


def test_a_repeated_delivery_changes_nothing(start_session, store_uri, mlflow_server, make_database):
    """Both backends accept a trace twice, before and after its spans, and store it once."""
    found = entries_of(start_session, store_uri)
    (info,) = (entry["info"] for entry in found if entry["op"] == "trace")
    spans = [span for entry in found if entry["op"] == "spans" for span in entry["spans"]]
    other = make_database("other", "tests")
    for backend, uri in zip(backends(other, mlflow_server), (other, mlflow_server), strict=True):
        mlflow.set_tracking_uri(uri)
        experiment = mlflow.set_experiment("repeats").experiment_id
        here = {**info, "trace_location": {"type": 1, "mlflow_experiment": {"experiment_id": experiment}}}
        for _ in range(2):
            backend.log_traces([here])
            backend.log_spans(experiment, spans, {"service.name": "agent"})
            backend.log_traces([here])
            backend.tag_trace(info["trace_id"], "stage", "one")
            backend.link_prompts(info["trace_id"], [{"name": "greeting", "version": 1}])
        (one,) = stored(mlflow.MlflowClient(uri), "repeats")
        assert len(one.data.spans) == SPANS
        assert one.info.state == "OK"
        assert one.info.tags["stage"] == "one"
        assert one.info.tags["service.name"] == "agent"


def test_a_server_without_spans_refuses_them(monkeypatch, mlflow_server):
    """A server that answers 404 refuses spans permanently; a dead server does not."""
    _, backend = backends("sqlite:///unused.db", mlflow_server)
    monkeypatch.setattr(rest_backend, "_SPANS", "/no-such-path")
    span = {
        "trace_id": "AAAAAAAAAAAAAAAAAAAAAQ==",
        "span_id": "AAAAAAAAAAE=",
        "name": "ask",
        "start_time_unix_nano": 1,
        "status": {"code": "STATUS_CODE_OK"},
        "attributes": {},
    }
    with pytest.raises(Refused, match="does not accept spans"):
        backend.log_spans("0", [span], None)
    monkeypatch.setattr(backend, "takes_others", lambda _: False)
    with pytest.raises(Unreachable):
        backend.log_spans("0", [span], None)


def test_the_agent_delivers_traces(server, start_python, wait_until):
    """Traces of a running job are delivered by the agent, which has not loaded MLflow."""
    process = start_python(
        "-c", JOB.replace("range(40, 10**9)", "[]") + "sys.stdin.readline()\n", stdin=-1, MLFLOW_TRACKING_URI=server.uri
    )
    process.wait_for("ready")
    process.popen.stdin.write("go\n")
    process.popen.stdin.flush()
    process.wait_for("ended")
    wait_until(lambda: len(stored(server.client(), "kills")) == 41, timeout=SOON)
    process.finish("go\n")

    assert {len(one.data.spans) for one in stored(server.client(), "kills")} == {SPANS}


def test_a_store_of_files_gets_the_spans_as_a_file(start_session, tmp_path):
    """A file store, which accepts no spans, has the spans of each trace as a file that MLflow reads."""
    uri = (tmp_path / "store").as_uri()
    with pytest.warns(UserWarning, match="is a folder"):
        started = start_session(uri)
    trace_id = trace()
    assert len(mlflow.get_trace(trace_id).data.spans) == SPANS
    started.stop()

    assert len(list(Path(tmp_path / "store").rglob("traces.json"))) == 1
