"""A copy is complete for every kind of store, also if it was interrupted and continued."""

from __future__ import annotations

import math
import os
import shutil
import signal
import uuid
from pathlib import Path

import pytest
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)

from autogen_team._sync import copying
from autogen_team._sync.models import as_point
from testkit.copies import EXPERIMENT, client_of, copy, current, files_of, happened, make_experiment, runs_of, write


@pytest.fixture
def folder_source(tmp_path, monkeypatch):
    """Return a store in a folder, with an empty experiment."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = str(tmp_path / "mlruns")
    client_of(uri).create_experiment(EXPERIMENT)
    return uri


def everything(client, run_id):
    """Fill a run with an example of each kind of content."""
    points = [Metric("loss", 1 / step, 1_700_000_000_000 + step, step) for step in range(1, 1501)]
    odd = [Metric("odd", value, 1, step) for step, value in enumerate((math.nan, math.inf, -math.inf, 0.0, 1e-300))]
    params = [Param(f"p{number}", f"{number}" * 20) for number in range(150)]
    tags = [RunTag(f"t{number}", "é" * 5000) for number in range(60)]
    tags += [RunTag("mlflow.note.content", "about"), RunTag("mlflow.source.name", "train.py")]
    tags += [RunTag("mlflow.log-model.history", f'[{{"run_id": "{run_id}"}}]')]
    client.log_batch(run_id, [*points, *odd], params, tags)
    for name, context in (("clients", "train"), ("others", "test")):
        dataset = Dataset(name, "0a1b", "local", '{"uri": "x.csv"}', schema='{"a": 1}', profile='{"rows": 2}')
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
    for path in ("a.txt", "b.txt", "sub/c.txt", "sub/deep/d é.txt"):
        client.log_text(run_id, f"this is {path}", path)
    client.log_text(run_id, "", "empty.txt")
    model = client.create_logged_model(
        client.get_run(run_id).info.experiment_id, "model", run_id, {"stage": "one"}, {"C": "1"}, "classifier"
    )
    shelf = Path(uuid.uuid4().hex)
    (shelf / "data").mkdir(parents=True)
    (shelf / "data" / "weights").write_bytes(bytes(range(256)))
    (shelf / "MLmodel").write_text(
        f"artifact_path: {model.artifact_location}\nrun_id: {run_id}\nmodel_id: {model.model_id}\n"
    )
    client.log_model_artifacts(model.model_id, str(shelf))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 7)])
    client.log_batch(run_id, [Metric("auc", 0.9, 5, 7, model.model_id, "clients", "0a1b")])


def state_of(uri):
    """Return every file and folder of a local store, with its bytes."""
    place = Path(uri.removeprefix("sqlite:///")).parent
    return {path: path.is_file() and path.read_bytes() for path in place.rglob("*")}


def contents(uri, experiment=EXPERIMENT):
    """Return the contents of the runs of an experiment, without what differs between stores."""
    client = client_of(uri)
    found = {}
    for name, run in runs_of(uri, experiment).items():
        info, data, run_id = run.info, run.data, run.info.run_id
        models = []
        for output in run.outputs.model_outputs:
            model = client.get_logged_model(output.model_id)
            files = files_of(uri, model.artifact_location)
            files["MLmodel"] = files["MLmodel"].decode()
            for own in (model.artifact_location, model.model_id, run_id):
                files["MLmodel"] = files["MLmodel"].replace(own, "own")
            about = {key: value for key, value in model.tags.items() if not key.startswith("autogen_team.")}
            metrics = [(m.key, m.value, m.timestamp, m.step, m.dataset_name) for m in model.metrics or []]
            kind = model.name, model.model_type, model.status, model.source_run_id == run_id
            models.append((*kind, model.params, about, files, metrics, output.step))
        found[name] = {
            "info": (info.status, info.start_time, info.end_time, info.user_id),
            "params": data.params,
            "tags": {
                key: value.replace(run_id, "own")
                for key, value in data.tags.items()
                if not key.startswith("autogen_team.")
            },
            "metrics": {
                key: sorted(map(as_point, client.get_metric_history(run_id, key)), key=str) for key in data.metrics
            },
            "datasets": sorted(
                (str(dict(used.dataset)), [(tag.key, tag.value) for tag in used.tags])
                for used in run.inputs.dataset_inputs
            ),
            "files": files_of(uri, info.artifact_uri) if client.list_artifacts(run_id) else {},
            "models": models,
        }
    return found


@pytest.mark.parametrize("kind", ["database", "server"])
def test_a_copy_has_everything_that_the_run_has(source, target, mlflow_server, request, kind, make_run):
    """A copy has the full history, parameters, tags, datasets, artifacts and models, on each kind of target."""
    experiment = f"everything {kind}"
    make_experiment(source, experiment, team="risk")
    run_id = make_run(source, experiment=experiment, end="FAILED", fill=everything)
    to = mlflow_server if kind == "server" else target

    (outcome,) = copy(source, to)

    assert contents(to, experiment) == contents(source, experiment)
    assert client_of(to).get_experiment_by_name(experiment).tags["team"] == "risk"
    assert (outcome.happened, outcome.reason, outcome.source_id) == ("copied", None, run_id)
    copied = client_of(to).get_run(outcome.target_id)
    assert copied.data.tags[copying.COPIED_FROM] == run_id
    assert copied.data.tags[copying.COPIED] == "1700000900000"
    assert outcome.counts == copying.Counts(metrics=1506, params=150, tags=63, datasets=2, artifacts=7, models=1)


def test_a_folder_can_be_a_source(folder_source, target, monkeypatch, make_run):
    """Runs of a file store are copied, although recent MLflow refuses file stores."""
    make_run(folder_source, fill=everything)
    before = contents(folder_source)
    before["train"]["metrics"]["auc"] = [("auc", 5, 0.9, 7)]  # a file store reads steps of dataset metrics as 0
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")

    (outcome,) = copy(folder_source, target)

    assert outcome.reason is None
    assert contents(target) == before
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ


def test_a_folder_can_be_a_target(source, tmp_path, monkeypatch, make_run):
    """A file store is created as a target; a second copy finds everything unchanged."""
    make_run(source, fill=everything)
    make_run(source, "other")
    target = str(tmp_path / "mlruns")

    outcomes = [copy(source, target), copy(source, target)]

    assert [set(happened(each).values()) for each in outcomes] == [{"copied"}, {"unchanged"}]
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = contents(source)
    before["train"]["metrics"]["auc"] = [("auc", 5, 0.9, 0)]  # as above: 7 is written, and read as 0
    assert contents(target) == before


def test_remote_artifacts_are_copied(make_database, target, mlflow_server, make_run):
    """Artifacts of a local database are copied from a remote artifact store."""
    source = make_database("source")
    place = f"{mlflow_server}/api/2.0/mlflow-artifacts/artifacts/elsewhere"
    client_of(source).create_experiment(EXPERIMENT, place)
    make_run(source, fill=everything)

    (outcome,) = copy(source, target)

    assert outcome.reason is None
    assert contents(target) == contents(source)


def test_artifacts_beside_a_moved_store_are_found(source, target, tmp_path, make_run):
    """Artifacts are found beside a database that was moved, although it still names the old folder."""
    make_run(source, fill=everything)
    before = contents(source)
    shutil.copytree(tmp_path / "source", tmp_path / "carried")
    shutil.rmtree(tmp_path / "source")

    (outcome,) = copy(f"sqlite:///{tmp_path}/carried/mlflow.db", target)

    assert outcome.reason is None
    assert contents(target) == before


def test_a_model_may_be_used_by_a_run_that_is_copied_first(source, target, make_run):
    """A parent that evaluates the model of its child uses the copied model, although the child is copied later."""
    client = client_of(source)
    parent = make_run(source, "parent", end=None)
    child = make_run(source, "child", parent=parent, fill=everything)
    (output,) = client.get_run(child).outputs.model_outputs
    client.log_inputs(parent, models=[LoggedModelInput(output.model_id)])
    client.log_batch(parent, [Metric("test auc", 0.8, 6, 0, output.model_id)])
    client.set_terminated(parent, "FINISHED", 1_700_000_070_000)

    outcomes = copy(source, target)

    assert happened(outcomes) == {"parent": "copied", "child": "copied"}
    runs = runs_of(target)
    (used,) = runs["parent"].inputs.model_inputs
    (made,) = runs["child"].outputs.model_outputs
    assert used.model_id == made.model_id
    model = client_of(target).get_logged_model(made.model_id)
    assert model.source_run_id == runs["child"].info.run_id
    assert {metric.key: metric.run_id for metric in model.metrics} == {
        "auc": runs["child"].info.run_id,
        "test auc": runs["parent"].info.run_id,
    }


def test_a_deleted_model_is_named(source, target, make_run):
    """A run is copied without a deleted model that it is linked to, and the reason names the model."""
    run_id = make_run(source, fill=everything)
    (output,) = client_of(source).get_run(run_id).outputs.model_outputs
    client_of(source).delete_logged_model(output.model_id)

    (outcome,) = copy(source, target)

    assert outcome.happened == "copied"
    assert f"the model {output.model_id}, which it is linked to, is gone" in outcome.reason


def test_the_copy_of_a_copy_is_marked_by_its_own_source(source, target, make_database, make_run):
    """The copy of a copy is marked with the run it was copied from, not with the original run."""
    make_run(source, fill=write({"a.txt": "a"}))
    (first,) = copy(source, target)
    third = make_database("third")
    make_experiment(third)

    seen = []

    (second,) = copy(target, third, progress=lambda step: step.part == "a.txt" and seen.extend(runs_of(third).values()))

    assert second.happened == "copied"
    assert copying.COPIED not in seen[0].data.tags
    assert runs_of(third)["train"].data.tags[copying.COPIED_FROM] == first.target_id
    assert contents(third) == contents(source)


def test_a_dry_run_writes_nothing_and_reports_what_would_be_copied(source, target, make_run):
    """A dry run reports what would be copied, and does not change the target."""
    make_experiment(source, "new")
    make_run(source, "train", experiment="new", fill=everything)
    make_run(source, "done")
    make_run(source, "running", end=None)
    before = state_of(target)

    outcomes = copy(source, target, dry_run=True, delete=True)

    assert happened(outcomes) == {"done": "would copy", "running": "skipped", "train": "would copy"}
    (train,) = [outcome for outcome in outcomes if outcome.run_name == "train"]
    assert train.counts == copying.Counts(metrics=1506, params=150, tags=65, datasets=2, artifacts=7, models=1)
    assert (train.target_id, train.is_deleted) == (None, False)
    assert state_of(target) == before


def test_the_second_time_nothing_is_copied(source, target, make_run):
    """A second copy reports the run as unchanged, and changes no byte of the target."""
    make_run(source, fill=everything)
    copied = copy(source, target)
    before = state_of(target)

    again = copy(source, target)

    assert [(outcome.happened, outcome.counts) for outcome in again] == [("unchanged", copying.Counts())]
    assert again[0].target_id == copied[0].target_id
    assert state_of(target) == before


KILLED = """
import sys, time
from autogen_team._sync import copying
from autogen_team._sync.models import as_point
import mlflow

def stop(*_):
    print("here", flush=True)
    time.sleep(600)

def progress(step):
    if step.part == sys.argv[3]:
        stop()

if sys.argv[3].startswith("MlflowClient."):
    setattr(mlflow.MlflowClient, sys.argv[3].partition(".")[2], stop)
for outcome in copying.copy(sys.argv[1], sys.argv[2], progress=progress):
    print(outcome, flush=True)
"""


@pytest.mark.parametrize(
    "moment",
    [
        "metrics",
        "sub/c.txt",
        "data/weights",
        "MlflowClient.finalize_logged_model",
        "MlflowClient.log_outputs",
        "MlflowClient.set_terminated",
        "MlflowClient.set_tag",
    ],
)
def test_a_copy_that_was_killed_is_continued(source, target, start_python, moment, make_run):
    """A copy that was killed is continued, with nothing missing and nothing twice."""
    make_run(source, "train", fill=everything)
    make_run(source, "later", fill=write({"z.txt": "z"}))
    process = start_python("-c", KILLED, source, target, moment)
    process.wait_for("here")
    process.send(signal.SIGKILL)
    process.finish()
    assert copying.COPIED not in runs_of(target)["train"].data.tags

    outcomes = copy(source, target)

    assert happened(outcomes) == {"train": "continued", "later": "copied"}
    assert contents(target) == contents(source)
    client = client_of(target)
    assert len(client.search_logged_models([client.get_experiment_by_name(EXPERIMENT).experiment_id])) == 1
    assert set(happened(copy(source, target)).values()) == {"unchanged"}


@pytest.mark.parametrize(("moment", "files"), [("sub/c.txt", 4), ("MlflowClient.log_outputs", 0)])
def test_what_was_sent_before_the_kill_is_not_sent_again(source, target, start_python, moment, files, make_run):
    """After a kill, metric points and complete files that were sent before are not sent again."""
    make_run(source, fill=everything)
    process = start_python("-c", KILLED, source, target, moment)
    process.wait_for("here")
    process.send(signal.SIGKILL)
    process.finish()

    (outcome,) = copy(source, target)

    assert outcome.counts == copying.Counts(artifacts=files, models=1)


def test_a_copy_is_running_until_it_is_complete(source, target, make_run):
    """The run on the target is RUNNING and has no end time until its copy is complete."""
    make_run(source, fill=write({"a.txt": "a"}))
    seen = []

    def look(progress):
        if progress.part == "a.txt":
            run = runs_of(target)["train"]
            seen.append((run.info.status, run.info.end_time, run.data.tags.get(copying.COPIED)))

    copy(source, target, progress=look)

    assert seen == [("RUNNING", None, None)]
    assert runs_of(target)["train"].info.status == "FINISHED"


def test_a_resumed_run_is_updated(source, target, make_run):
    """A resumed run is copied again: new points, tags, names, and files that changed without growing."""
    run_id = make_run(source, fill=everything)
    client = client_of(source)
    client.log_text(run_id, "old", "a.txt")
    (first,) = copy(source, target)
    (output,) = client.get_run(run_id).outputs.model_outputs
    client.set_logged_model_tags(output.model_id, {"stage": "two"})
    client.log_model_params(output.model_id, {"tol": "0.1"})
    client.update_run(run_id, "RUNNING", "renamed")
    client.log_metric(run_id, "loss", 0.5, step=2)
    client.set_tag(run_id, "note", "new")
    client.log_text(run_id, "new", "a.txt")
    for kept in ("b.txt", "empty.txt", "sub/c.txt", "sub/deep/d é.txt"):
        os.utime(Path(client.get_run(run_id).info.artifact_uri, kept), (1_000_000_000, 1_000_000_000))
    client.set_terminated(run_id, "FAILED", 1_700_000_990_000)

    (outcome,) = copy(source, target)

    assert (outcome.happened, outcome.target_id) == ("continued", first.target_id)
    assert (outcome.counts.metrics, outcome.counts.tags, outcome.counts.artifacts) == (1, 1, 1)
    assert contents(target) == contents(source)
    assert happened(copy(source, target)) == {"renamed": "unchanged"}


def _point(client, run_id):
    client.log_metric(run_id, "late", 0.9)


def _earlier_point(client, run_id):
    client.log_metric(run_id, "loss", 7.0, timestamp=1, step=-5)


def _tag(client, run_id):
    client.set_tag(run_id, "verdict", "good")


def _param(client, run_id):
    client.log_param(run_id, "late", "1")


def _file(client, run_id):
    client.log_text(run_id, "late", "late.txt")


def _other_file(client, run_id):
    client.log_text(run_id, "THIS IS a.txt", "a.txt")


def _dataset(client, run_id):
    client.log_inputs(run_id, [DatasetInput(Dataset("late", "0a", "local", "{}"), [])])


def _tag_of_a_model(client, run_id):
    (output,) = client.get_run(run_id).outputs.model_outputs
    client.set_logged_model_tags(output.model_id, {"stage": "two"})


@pytest.mark.parametrize(
    "add",
    [_point, _earlier_point, _tag, _param, _file, _other_file, _dataset, _tag_of_a_model],
    ids=lambda add: add.__name__,
)
@pytest.mark.parametrize("kind", ["database", "folder"])
def test_additions_to_an_ended_run_are_copied(request, target, monkeypatch, make_run, add, kind):
    """Additions to an ended run are copied the next time, and after that the run is unchanged."""
    uri = request.getfixturevalue("source" if kind == "database" else "folder_source")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_id = make_run(uri, fill=everything)
    (first,) = copy(uri, target)
    with current(uri):
        add(client_of(uri), run_id)

    (second,) = copy(uri, target)
    (again,) = copy(uri, target)

    assert (second.happened, again.happened) == ("continued", "unchanged")
    assert first.target_id == second.target_id == again.target_id
    here, there = contents(uri)["train"], contents(target)["train"]
    if kind == "folder":  # a file store keeps models and their metrics differently
        here, there = ({part: one[part] for part in ("params", "tags", "datasets", "files")} for one in (here, there))
    assert there == here


def test_a_copy_by_an_older_version_is_compared_once(source, target, make_run):
    """A copy without a digest of its source's content is compared once, and unchanged after that."""
    make_run(source, fill=everything)
    (first,) = copy(source, target)
    client_of(target).delete_tag(first.target_id, "autogen_team.copied_content")

    assert [outcome.happened for outcome in copy(source, target)] == ["continued"]
    assert [outcome.happened for outcome in copy(source, target)] == ["unchanged"]


def break_artifact(uri, run_id, path):
    """Replace an artifact by a dangling link, and return its path."""
    broken = Path(client_of(uri).get_run(run_id).info.artifact_uri, path)
    broken.unlink()
    broken.symlink_to("/nowhere")
    return broken


def test_an_artifact_that_cannot_be_read_is_named_and_the_others_arrive(source, target, make_run):
    """Unreadable artifacts are named while others are copied; the copy continues once they can be read."""
    run_id = make_run(source, fill=write({"a.txt": "a", "sub/b.txt": "b", "sub/c.txt": "c"}))
    make_run(source, "other")
    broken = break_artifact(source, run_id, "sub/b.txt")
    os.mkfifo(broken.with_name("pipe"))

    outcomes = {outcome.run_name: outcome for outcome in copy(source, target)}

    assert (outcomes["train"].happened, outcomes["other"].happened) == ("failed", "copied")
    assert "artifact sub/b.txt" in outcomes["train"].reason
    assert "artifact sub/pipe" in outcomes["train"].reason
    copied = runs_of(target)["train"]
    assert set(files_of(target, copied.info.artifact_uri)) == {"a.txt", "sub/c.txt"}
    assert copied.info.status == "RUNNING"

    broken.unlink()
    broken.write_text("b")
    broken.with_name("pipe").unlink()
    assert happened(copy(source, target)) == {"train": "continued", "other": "unchanged"}
    assert contents(target) == contents(source)
