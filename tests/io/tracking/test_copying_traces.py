"""Traces are copied with everything they have, each once, under the copies of their runs."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import AssessmentSource, SpanType

from testkit.copies import EXPERIMENT, client_of, copy, current, make_experiment, runs_of

_RATING = AssessmentSource("HUMAN", "ada@example.com")


def record(uri, *, run_name=None, experiment=EXPERIMENT, question="2 + 2?"):
    """Record a trace of two spans with all possible content, in a new run if a name is given; return its id."""
    with current(uri), contextlib.ExitStack() as stack:
        mlflow.set_experiment(experiment)
        if run_name:
            stack.enter_context(mlflow.start_run(run_name=run_name))
        with mlflow.start_span("ask", SpanType.AGENT) as span:
            span.set_inputs({"question": question})
            mlflow.update_current_trace(tags={"stage": "one"}, metadata={"customer": "7"}, client_request_id="r-1")
            with mlflow.start_span("model", SpanType.CHAT_MODEL) as inner:
                inner.set_attribute(
                    "mlflow.chat.tokenUsage", {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
                )
                inner.add_event(mlflow.entities.SpanEvent("first token"))
            span.set_outputs({"answer": 4})
        mlflow.flush_trace_async_logging()
        mlflow.log_feedback(trace_id=span.trace_id, name="good", value=True, rationale="it is 4", source=_RATING)
        mlflow.log_expectation(trace_id=span.trace_id, name="answer", value="4", source=_RATING)
    return span.trace_id


def infos_of(uri, experiment=EXPERIMENT):
    """Return the traces of an experiment by their ids."""
    experiment_id = client_of(uri).get_experiment_by_name(experiment).experiment_id
    found = client_of(uri).search_traces(locations=[experiment_id], include_spans=False, max_results=500)
    return {trace.info.trace_id: trace.info for trace in found}


def about(uri, trace_id):
    """Return the content of a trace, without values that differ between stores."""
    with current(uri):
        trace = mlflow.get_trace(trace_id)
    info = trace.info
    kept = {key: value for key, value in info.tags.items() if not key.startswith(("autogen_team.", "mlflow.artifact"))}
    metadata = {key: value for key, value in info.trace_metadata.items() if key != "mlflow.sourceRun"}
    spans = [span.to_dict() for span in trace.data.spans]
    times = info.request_time, info.execution_duration, info.state, info.client_request_id
    return {
        "info": (*times, info.request_preview, info.response_preview),
        "tags": kept,
        "metadata": metadata,
        "assessments": sorted(
            (one.assessment_id, one.name, str(one.source), str(one.feedback or one.expectation), one.rationale)
            for one in info.assessments
        ),
        "spans": sorted(spans, key=lambda span: span["span_id"]),
    }


@pytest.mark.parametrize("kind", ["database", "server"])
def test_a_trace_is_copied_whole(source, target, mlflow_server, kind):
    """Spans, tags, metadata, tokens and assessments arrive, and the trace belongs to the copy of its run."""
    to = mlflow_server if kind == "server" else target
    experiment = f"traces {kind}"
    make_experiment(source, experiment)
    trace_id = record(source, run_name="train", experiment=experiment)

    (outcome,) = copy(source, to)

    assert (outcome.happened, outcome.reason, outcome.counts.traces) == ("copied", None, 1)
    assert about(to, trace_id) == about(source, trace_id)
    info = infos_of(to, experiment)[trace_id]
    assert info.trace_metadata["mlflow.sourceRun"] == outcome.target_id
    assert info.token_usage == {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    assert [one.happened for one in copy(source, to)] == ["unchanged"]


def test_a_trace_outside_of_runs_comes_with_its_experiment(source, target):
    """A trace recorded without a run has its own outcome, and is copied once."""
    trace_id = record(source)

    (outcome,) = copy(source, target, dry_run=True)
    assert (outcome.experiment, outcome.happened, outcome.counts.traces) == (EXPERIMENT, "would copy", 1)
    assert infos_of(target) == {}
    (outcome,) = copy(source, target)
    assert (outcome.experiment, outcome.source_id, outcome.happened) == (EXPERIMENT, "", "copied")
    assert about(target, trace_id) == about(source, trace_id)
    assert [one.happened for one in copy(source, target)] == ["unchanged"]
    assert [one.happened for one in copy(source, target, dry_run=True)] == ["unchanged"]


def test_what_was_added_to_traces_after_their_copy_arrives(source, target):
    """A trace, a tag and an assessment added to an ended run are copied, each once."""
    first = record(source, run_name="train")
    (copied,) = copy(source, target)
    run_id = copied.source_id
    with current(source):
        mlflow.set_trace_tag(first, "late", "1")
        mlflow.log_feedback(trace_id=first, name="late", value=0.5)
        mlflow.set_experiment(EXPERIMENT)
        with mlflow.start_run(run_id=run_id), mlflow.start_span("again") as span:
            pass
        mlflow.flush_trace_async_logging()

    (outcome,) = copy(source, target)

    assert (outcome.happened, outcome.counts.traces) == ("continued", 2)
    assert set(infos_of(target)) == {first, span.trace_id}
    assert about(target, first) == about(source, first)
    assert [one.happened for one in copy(source, target)] == ["unchanged"]


def test_a_trace_that_is_linked_to_another_run_is_linked_there(source, target):
    """A trace that a run of another experiment evaluates is copied once, and linked to both copies."""
    trace_id = record(source, run_name="serve")
    with current(source):
        with mlflow.start_run(run_name="evaluate") as run:
            pass
        client_of(source).link_traces_to_run([trace_id], run.info.run_id)

    outcomes = {outcome.run_name: outcome for outcome in copy(source, target)}

    assert {one.happened for one in outcomes.values()} == {"copied"}
    experiment_ids = [experiment.experiment_id for experiment in client_of(target).search_experiments()]
    for name in ("serve", "evaluate"):
        search = client_of(target).search_traces
        found = search(locations=experiment_ids, run_id=outcomes[name].target_id, include_spans=False)
        assert [trace.info.trace_id for trace in found] == [trace_id]
    assert {one.happened for one in copy(source, target)} == {"unchanged"}


def test_a_trace_that_the_target_refuses_is_named(source, target):
    """A run whose trace is not accepted counts as failed, is not deleted, and its other traces arrive."""
    bad, good = record(source, run_name="bad"), record(source, run_name="good")
    with contextlib.closing(sqlite3.connect(target.removeprefix("sqlite:///"))) as database:
        when = f"NEW.trace_id = '{bad}'"
        database.execute(f"CREATE TRIGGER t BEFORE INSERT ON spans WHEN {when} BEGIN SELECT RAISE(ABORT, 'no'); END")

    outcomes = {one.run_name: one for one in copy(source, target, delete=True)}

    assert (outcomes["bad"].happened, outcomes["bad"].is_deleted) == ("failed", False)
    assert f"trace {bad}: " in outcomes["bad"].reason
    assert (outcomes["good"].happened, outcomes["good"].is_deleted) == ("copied", True)
    assert about(target, good) == about(source, good)


def test_a_run_with_traces_is_deleted_once_they_have_arrived(source, target):
    """Its traces stay in the source, because MLflow could not restore them, and are not sent again."""
    trace_id = record(source, run_name="train")

    (outcome,) = copy(source, target, delete=True)

    assert (outcome.happened, outcome.is_deleted) == ("copied", True)
    assert runs_of(source) == {}
    assert set(infos_of(source)) == {trace_id}
    assert [(one.source_id, one.happened) for one in copy(source, target)] == [("", "unchanged")]
    assert infos_of(target)[trace_id].trace_metadata["mlflow.sourceRun"] == outcome.target_id


def test_traces_that_came_from_the_target_are_left_alone(source, target):
    """A copy back to the original store changes nothing there."""
    trace_id = record(source)
    copy(source, target)
    before = infos_of(source)

    (outcome,) = copy(target, source)

    assert outcome.happened == "skipped"
    assert f"{trace_id}, because the target itself has it" in outcome.reason
    assert infos_of(source) == before


def test_attachments_of_a_trace_are_copied(source, target):
    """An image in the inputs of a span is a file of the trace, and is copied."""
    attachment = pytest.importorskip("mlflow.tracing.attachments").Attachment
    with current(source):
        mlflow.set_experiment(EXPERIMENT)
        with mlflow.start_run(run_name="train"), mlflow.start_span("ask") as span:
            span.set_inputs({"image": attachment(content_type="image/png", content_bytes=b"image")})
        mlflow.flush_trace_async_logging()

    (outcome,) = copy(source, target)

    assert (outcome.happened, outcome.reason) == ("copied", None)
    info = infos_of(target)[span.trace_id]
    place = Path(info.tags["mlflow.artifactLocation"].removeprefix("file://"))
    files = [path for path in place.rglob("*") if path.is_file() and path.name != "traces.json"]  # MLflow may add it
    assert [path.read_bytes() for path in files] == [b"image"]


def test_traces_of_a_folder_are_copied_to_a_database(tmp_path, target, monkeypatch):
    """Spans from a file store's files are stored in the database."""
    folder = str(tmp_path / "mlruns")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client_of(folder).create_experiment(EXPERIMENT)
        trace_id = record(folder, run_name="train")
        before = about(folder, trace_id)

    (outcome,) = copy(folder, target)

    assert (outcome.happened, outcome.reason, outcome.counts.traces) == ("copied", None, 1)
    after = about(target, trace_id)
    assert [span["span_id"] for span in after["spans"]] == [span["span_id"] for span in before["spans"]]
    assert after["spans"] == before["spans"]
    assert after["assessments"] == before["assessments"]
    shutil.rmtree(folder)


def test_traces_are_not_copied_to_a_folder(source, tmp_path):
    """The outcome of the run says that traces are not copied, and the run is not deleted in the source."""
    record(source, run_name="train")

    (outcome,) = copy(source, str(tmp_path / "mlruns"), delete=True)

    assert (outcome.happened, outcome.is_deleted) == ("copied", False)
    assert "not copied: 1 traces, because the target is a folder" in outcome.reason
    assert "not deleted, because not all of it could be copied" in outcome.reason
