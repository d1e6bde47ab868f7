"""Runs copied from one store to another, between real stores."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import signal
import time
import uuid
from pathlib import Path

import mlflow
import numpy as np
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
    ViewType,
)
from sklearn.linear_model import LogisticRegression

from autogen_team.errors import ConfigurationError, TrackingUnavailableError
from autogen_team.io._tracking import copying, copying_contents, copying_models, seam

EXPERIMENT = "fraud"
_seconds = itertools.count()
"""When the next run begins: each later than the one before."""


@contextlib.contextmanager
def current(uri):
    """Let MLflow's fluent functions work on this store inside the block."""
    restore = seam.keep_uris()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        restore()


def client_of(uri):
    """Return a client of the store."""
    return mlflow.MlflowClient(uri, uri)


@pytest.fixture
def make_database(migrated_database, tmp_path):
    """Return a function that makes a store of this name, with a folder of its own for artifacts."""

    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(migrated_database, folder / "mlflow.db")
        return f"sqlite:///{folder / 'mlflow.db'}"

    return make


@pytest.fixture
def source(make_database):
    """Return a store with an empty experiment."""
    uri = make_database("source")
    make_experiment(uri)
    return uri


@pytest.fixture
def target(make_database):
    """Return a store to copy to."""
    uri = make_database("target")
    make_experiment(uri)
    return uri


@pytest.fixture
def folder_source(tmp_path, monkeypatch):
    """Return a store in a folder, with an empty experiment."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = str(tmp_path / "mlruns")
    client_of(uri).create_experiment(EXPERIMENT)
    return uri


def make_experiment(uri, name=EXPERIMENT, **tags):
    """Make an experiment whose artifacts lie beside the database, and return its id."""
    place = Path(uri.partition(":///")[2]).parent / "artifacts" / name
    return client_of(uri).create_experiment(name, str(place), tags)


def make_run(uri, name="train", *, experiment=EXPERIMENT, parent=None, end="FINISHED", fill=None, **tags):
    """Make a run, let `fill` fill it, end it, and return its id."""
    client = client_of(uri)
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    if parent:
        tags["mlflow.parentRunId"] = parent
    begin = 1_700_000_000_000 + next(_seconds) * 1000
    run_id = client.create_run(experiment_id, begin, {"mlflow.user": "ada", **tags}, name).info.run_id
    if fill:
        fill(client, run_id)
    if end:
        client.set_terminated(run_id, end, 1_700_000_900_000)
    return run_id


def write(files):
    """Return what fills a run with these artifacts."""

    def fill(client, run_id):
        for path, text in files.items():
            client.log_text(run_id, text, path)

    return fill


def everything(client, run_id):
    """Fill a run with some of everything."""
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


def copy(source, target, **options):
    """Copy, and return what became of all runs."""
    return list(copying.copy(source, target, **options))


def happened(outcomes):
    """Return what happened to the runs of these names."""
    return {outcome.run_name: outcome.happened for outcome in outcomes if outcome.source_id}


def runs_of(uri, experiment=EXPERIMENT, view=ViewType.ACTIVE_ONLY):
    """Return the runs of an experiment by their names; no name may be there twice."""
    client = client_of(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], run_view_type=view) if found else []
    by_name = {run.info.run_name: client.get_run(run.info.run_id) for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def files_of(uri, address):
    """Return the artifacts at an address, with their content."""
    root = mlflow.artifacts.download_artifacts(artifact_uri=address, tracking_uri=uri)
    return {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def contents(uri, experiment=EXPERIMENT):
    """Return what is in the runs of an experiment, without what differs in each store."""
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
                key: sorted(map(copying_models.as_point, client.get_metric_history(run_id, key)), key=str)
                for key in data.metrics
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
def test_a_copy_has_everything_that_the_run_has(source, target, mlflow_server, request, kind):
    """Full history, parameters, tags, datasets, artifacts and models, whatever the target is."""
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


def test_a_folder_is_a_source_as_good_as_any(folder_source, target, monkeypatch):
    """MLflow refuses its own file store by now; the runs in it are wanted all the same."""
    make_run(folder_source, fill=everything)
    before = contents(folder_source)
    before["train"]["metrics"]["auc"] = [("auc", 5, 0.9, 7)]  # a folder tells 0, the step of all that has a dataset
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")

    (outcome,) = copy(folder_source, target)

    assert outcome.reason is None
    assert contents(target) == before
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ


def test_a_folder_is_a_target_as_good_as_any(source, tmp_path, monkeypatch):
    """It is made if it is not there; the second time nothing is copied."""
    make_run(source, fill=everything)
    make_run(source, "other")
    target = str(tmp_path / "mlruns")

    outcomes = [copy(source, target), copy(source, target)]

    assert [set(happened(each).values()) for each in outcomes] == [{"copied"}, {"unchanged"}]
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = contents(source)
    before["train"]["metrics"]["auc"] = [("auc", 5, 0.9, 0)]  # as above: it is written as 7 and read as 0
    assert contents(target) == before


def test_a_model_can_be_loaded_from_where_it_was_copied_to(source, mlflow_server):
    """By its new id, and it says of itself what is true there."""
    make_experiment(source, "models")
    with current(source):
        mlflow.set_experiment("models")
        with mlflow.start_run(run_name="fit"):
            fitted = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
            mlflow.sklearn.log_model(fitted, name="model", pip_requirements=["scikit-learn"], step=3)

    (outcome,) = copy(source, mlflow_server)

    (output,) = client_of(mlflow_server).get_run(outcome.target_id).outputs.model_outputs
    with current(mlflow_server):
        loaded = mlflow.sklearn.load_model(f"models:/{output.model_id}")
        about = mlflow.models.get_model_info(f"models:/{output.model_id}")
    assert loaded.predict(np.array([[0.0], [1.0]])).tolist() == [0, 1]
    assert (about.run_id, about.model_id, output.step) == (outcome.target_id, output.model_id, 3)
    assert output.model_id in about.artifact_path


def test_nested_runs_stay_nested(source, target):
    """Under the new ids of their parents, also if the parent comes later or is in another experiment."""
    make_experiment(source, "another")
    outer = make_run(source, "outer", experiment="another")
    inner = make_run(source, "inner", parent=outer)
    make_run(source, "innermost", parent=inner)

    outcomes = copy(source, target)

    assert set(happened(outcomes).values()) == {"copied"}
    runs = {**runs_of(target), **runs_of(target, "another")}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    ids = {name: run.info.run_id for name, run in runs.items()}
    assert parents == {"outer": None, "inner": ids["outer"], "innermost": ids["inner"]}


def test_a_run_whose_parent_is_gone_comes_without(source, target):
    """And it is said."""
    parent = make_run(source, "parent")
    make_run(source, "child", parent=parent)
    client_of(source).delete_run(parent)

    (outcome,) = copy(source, target)

    assert outcome.happened == "copied"
    assert f"its parent {parent} is gone" in outcome.reason
    assert "mlflow.parentRunId" not in runs_of(target)["child"].data.tags


def test_the_second_time_nothing_is_copied(source, target):
    """Not a byte of the target changes."""
    make_run(source, fill=everything)
    copied = copy(source, target)
    before = state_of(target)

    again = copy(source, target)

    assert [(outcome.happened, outcome.counts) for outcome in again] == [("unchanged", copying.Counts())]
    assert again[0].target_id == copied[0].target_id
    assert state_of(target) == before


def state_of(uri):
    """Return all that there is of a local store, byte by byte."""
    place = Path(uri.removeprefix("sqlite:///")).parent
    return {path: path.is_file() and path.read_bytes() for path in place.rglob("*")}


KILLED = """
import sys, time
from autogen_team.io._tracking import copying
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
def test_a_copy_that_was_killed_goes_on_where_it_was(source, target, start_python, moment):
    """Nothing is missing afterwards, and nothing there twice."""
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
def test_what_was_sent_before_the_kill_is_not_sent_again(source, target, start_python, moment, files):
    """The points of a metric, and the files that are there in full."""
    make_run(source, fill=everything)
    process = start_python("-c", KILLED, source, target, moment)
    process.wait_for("here")
    process.send(signal.SIGKILL)
    process.finish()

    (outcome,) = copy(source, target)

    assert outcome.counts == copying.Counts(artifacts=files, models=1)


def test_a_copy_is_running_until_it_is_complete(source, target):
    """Whoever looks at the target sees that there is more to come."""
    make_run(source, fill=write({"a.txt": "a"}))
    seen = []

    def look(progress):
        if progress.part == "a.txt":
            run = runs_of(target)["train"]
            seen.append((run.info.status, run.info.end_time, run.data.tags.get(copying.COPIED)))

    copy(source, target, progress=look)

    assert seen == [("RUNNING", None, None)]
    assert runs_of(target)["train"].info.status == "FINISHED"


def test_a_run_that_was_resumed_since_is_brought_up_to_date(source, target):
    """With new points, tags and names, and with files that changed without growing."""
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


def test_a_dry_run_writes_nothing_and_tells_what_would_be_copied(source, target):
    """Not even the experiment."""
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


def test_a_dry_run_sees_what_is_in_the_way(source, target):
    """A parent that has not ended, for one."""
    ended, running = make_run(source, "ended"), make_run(source, "running", end=None)
    make_run(source, "one", parent=ended)
    make_run(source, "two", parent=running)

    outcomes = copy(source, target, dry_run=True)

    assert happened(outcomes) == {"ended": "would copy", "running": "skipped", "one": "would copy", "two": "skipped"}


def test_a_dry_run_does_not_make_the_target(source, tmp_path):
    """MLflow would make a database of any address."""
    make_run(source)

    outcomes = copy(source, f"sqlite:///{tmp_path}/new.db", dry_run=True)

    assert happened(outcomes) == {"train": "would copy"}
    assert not (tmp_path / "new.db").exists()


def test_a_target_that_is_not_there_is_made(source, tmp_path):
    """As MLflow always does."""
    make_run(source)

    outcomes = copy(source, f"sqlite:///{tmp_path}/new.db")

    assert happened(outcomes) == {"train": "copied"}
    assert happened(copy(source, f"sqlite:///{tmp_path}/new.db")) == {"train": "unchanged"}


def test_a_run_is_deleted_in_the_source_once_it_has_arrived(source, target):
    """One that has not, stays; one that had arrived before goes as well."""
    make_run(source, "before")
    copy(source, target)
    parent = make_run(source, "parent")
    make_run(source, "child", parent=parent)
    broken = make_run(source, "broken", fill=write({"a.txt": "a"}))
    break_artifact(source, broken, "a.txt")

    outcomes = copy(source, target, delete=True)

    assert {outcome.run_name: outcome.is_deleted for outcome in outcomes} == {
        "before": True,
        "parent": True,
        "child": True,
        "broken": False,
    }
    assert list(runs_of(source)) == ["broken"]
    assert set(runs_of(source, view=ViewType.DELETED_ONLY)) == {"before", "parent", "child"}


def test_a_run_that_cannot_be_deleted_is_named(source, target):
    """It has been copied all the same."""
    make_run(source)
    with contextlib.closing(copying.sqlite3.connect(source.removeprefix("sqlite:///"))) as database:
        database.execute("CREATE TRIGGER no BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'read only'); END")

    (outcome,) = copy(source, target, delete=True)

    assert (outcome.happened, outcome.is_deleted) == ("copied", False)
    assert "not deleted: (sqlite3.IntegrityError) read only" in outcome.reason


def test_children_find_the_copy_of_a_parent_that_was_deleted(source, target):
    """As when a sweep goes on after a sync."""
    parent = make_run(source, "parent")
    (copied,) = copy(source, target, delete=True)
    make_run(source, "child", parent=parent)

    (outcome,) = copy(source, target)

    assert outcome.reason is None
    assert runs_of(target)["child"].data.tags["mlflow.parentRunId"] == copied.target_id


def break_artifact(uri, run_id, path):
    """Let an artifact be a link that leads nowhere, and return its path."""
    broken = Path(client_of(uri).get_run(run_id).info.artifact_uri, path)
    broken.unlink()
    broken.symlink_to("/nowhere")
    return broken


def test_a_run_that_has_not_ended_is_skipped(source, target):
    """It is said why, and what to do if nobody writes it any more."""
    make_run(source, "running", end=None)

    (outcome,) = copy(source, target)

    assert (outcome.happened, outcome.target_id) == ("skipped", None)
    assert "it is RUNNING" in outcome.reason
    assert "autogen-team recover" in outcome.reason
    assert runs_of(target) == {}


def test_a_child_waits_for_its_parent_to_end(source, target):
    """Without it, the nesting would be lost for ever."""
    parent = make_run(source, "parent", end=None)
    make_run(source, "child", parent=parent)

    reasons = {outcome.run_name: outcome.reason for outcome in copy(source, target)}

    assert f"its parent {parent} is not copied: it is RUNNING" in reasons["child"]
    assert runs_of(target) == {}
    client_of(source).set_terminated(parent)
    assert happened(copy(source, target)) == {"parent": "copied", "child": "copied"}


def test_an_artifact_that_cannot_be_read_is_named_and_the_others_arrive(source, target):
    """The copy is continued when it can be read again."""
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


def test_what_the_target_refuses_is_named_without_secrets(source, target):
    """A parameter does not keep the artifacts, nor a run the other runs."""

    def fill(client, run_id):
        client.log_param(run_id, "bad", "1")
        client.log_text(run_id, "a", "a.txt")
        client.log_metric(run_id, "loss", 1)

    make_run(source, "partly", fill=fill)
    make_run(source, "not at all")
    make_run(source, "fine")
    forbid = "CREATE TRIGGER {0} BEFORE INSERT ON {0} WHEN NEW.{1} BEGIN SELECT RAISE(ABORT, '{2}'); END"
    with contextlib.closing(copying.sqlite3.connect(target.removeprefix("sqlite:///"))) as database:
        database.execute(forbid.format("params", "key = 'bad'", "no, password=hunter2hunter2"))
        database.execute(forbid.format("runs", "name = 'not at all'", "no such run"))
        database.commit()

    outcomes = {outcome.run_name: outcome for outcome in copy(source, target)}

    assert {name: outcome.happened for name, outcome in outcomes.items()} == {
        "partly": "failed",
        "not at all": "failed",
        "fine": "copied",
    }
    assert "params: " in outcomes["partly"].reason
    assert "no such run" in outcomes["not at all"].reason
    assert "hunter2" not in str(outcomes)
    assert (outcomes["partly"].counts.artifacts, outcomes["partly"].counts.metrics) == (1, 1)


def test_names_that_mlflow_would_garble_are_not_sent_to_a_server(source, mlflow_server):
    """`a#b.txt` would overwrite `a`."""
    make_experiment(source, "names")
    names = {"a": "a", "a#b.txt": "b", "a?c": "c", "a%41": "d", "sp ace/ü+&;=~.txt": "e"}
    make_run(source, experiment="names", fill=write(names))

    (outcome,) = copy(source, mlflow_server)

    assert outcome.happened == "failed"
    assert all(f"artifact {name}" in outcome.reason for name in ("a#b.txt", "a?c", "a%41"))
    run = client_of(mlflow_server).get_run(outcome.target_id)
    assert files_of(mlflow_server, run.info.artifact_uri) == {"a": b"a", "sp ace/ü+&;=~.txt": b"e"}


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("sqlite:///nothing.db", "does not exist"),
        ("sqlite:///empty.db", "does not exist"),
        ("sqlite:///other.db", "is no MLflow store"),
        ("sqlite:///text", "is no MLflow store"),
        ("nothing", "does not exist"),
        ("file:nothing", "does not exist"),
        ("folder", "is no MLflow store"),
        ("text", "is no MLflow store"),
    ],
)
def test_a_source_that_is_no_store_is_refused(target, uri, fault):
    """And stays as it is: MLflow would make a store of it."""
    Path("folder").mkdir()
    Path("folder", "file").touch()
    Path("empty.db").touch()
    Path("text").write_text("text" * 1000)
    with contextlib.closing(copying.sqlite3.connect("other.db")) as database:
        database.execute("CREATE TABLE mine (id INTEGER)")
    before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}

    with pytest.raises(ConfigurationError, match=fault):
        copy(uri, target)

    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before


def test_a_source_that_mlflow_cannot_open_is_refused_with_the_remedy(migrated_database, target):
    """Its schema may be newer than the MLflow that is installed."""
    with contextlib.closing(copying.sqlite3.connect(shutil.copy(migrated_database, "newer.db"))) as database:
        database.execute("UPDATE alembic_version SET version_num = 'f00'")
        database.commit()

    with pytest.raises(ConfigurationError, match=r"cannot be opened: .* schema .*mlflow db upgrade"):
        copy("sqlite:///newer.db", target)


def test_somebody_else_s_database_is_no_target(source):
    """MLflow would put fifty tables into it."""
    with contextlib.closing(copying.sqlite3.connect("other.db")) as database:
        database.execute("CREATE TABLE mine (id INTEGER)")

    with pytest.raises(ConfigurationError, match=r"the target sqlite:.* is no MLflow store"):
        copy(source, "sqlite:///other.db")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{}/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite+pysqlite:///../work/mlflow.db?timeout=5"),
        ("mlruns", "file://{}/mlruns"),
        ("http://localhost:5000", "http://localhost:5000/"),
    ],
)
def test_a_store_is_not_copied_onto_itself(store_uri, one, other):
    """However it is written."""
    with pytest.raises(ConfigurationError, match="same store"):
        copy(one, other.format(Path.cwd()))


def test_a_store_behind_another_address_is_not_copied_onto_itself(source, make_database):
    """As when the target is a server on the very database: every copy would be copied the next time."""
    make_run(source)
    twin = make_database("twin")
    shutil.copy(source.removeprefix("sqlite:///"), twin.removeprefix("sqlite:///"))

    (outcome,) = copy(source, twin, delete=True)

    assert (outcome.happened, outcome.is_deleted) == ("skipped", False)
    assert "the target itself has the run" in outcome.reason
    assert list(runs_of(twin)) == ["train"]


def test_new_runs_of_a_twin_are_copied(source, make_database):
    """The target began as a copy of the database; a child finds its parent, which both have."""
    parent = make_run(source, "parent")
    twin = make_database("twin")
    shutil.copy(source.removeprefix("sqlite:///"), twin.removeprefix("sqlite:///"))
    make_run(source, "child", parent=parent)

    assert happened(copy(source, twin)) == {"parent": "skipped", "child": "copied"}
    assert runs_of(twin)["child"].data.tags["mlflow.parentRunId"] == parent


def test_a_copy_is_not_copied_back(source, target):
    """The original is there."""
    make_run(source)
    copy(source, target)

    assert happened(copy(target, source)) == {"train": "skipped"}
    assert list(runs_of(source)) == ["train"]


def test_the_copy_of_a_copy_is_marked_by_its_own_source(source, target, make_database):
    """The marks of the first copy do not pass for those of the second."""
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


def test_a_copy_that_was_deleted_on_the_target_stays_deleted(source, target):
    """Somebody did not want it there."""
    make_run(source)
    (copied,) = copy(source, target)
    client_of(target).delete_run(copied.target_id)

    (outcome,) = copy(source, target)

    assert outcome.happened == "skipped"
    assert f"its copy {copied.target_id} was deleted" in outcome.reason
    assert runs_of(target) == {}
    client_of(target).restore_run(copied.target_id)
    assert happened(copy(source, target)) == {"train": "unchanged"}


def test_an_experiment_that_was_deleted_on_the_target_is_not_written_to(source, target):
    """Nor can one of that name be made."""
    make_run(source)
    client_of(target).delete_experiment(client_of(target).get_experiment_by_name(EXPERIMENT).experiment_id)

    (outcome,) = copy(source, target)

    assert outcome.happened == "skipped"
    assert "mlflow experiments restore" in outcome.reason


def test_what_is_never_copied_is_counted(source, target):
    """Registered model versions and traces, per experiment; a run that has some is not deleted."""
    client = client_of(source)
    run_id = make_run(source, fill=write({"model/MLmodel": "run_id: x"}))
    client.create_registered_model("fraud")
    client.create_model_version("fraud", f"runs:/{run_id}/model", run_id)
    client.create_model_version("fraud", "/somewhere")
    with current(source):
        mlflow.set_experiment(EXPERIMENT)
        with mlflow.start_span("call"):
            pass
        with mlflow.start_run(run_name="traced"), mlflow.start_span("call"):
            pass
        mlflow.flush_trace_async_logging()
    deadline = time.monotonic() + 30
    while len(client.search_traces(locations=[client.get_run(run_id).info.experiment_id])) < 2:
        assert time.monotonic() < deadline

    registered, traced, *rest = copy(source, target, delete=True)

    assert {run.happened for run in (registered, traced)} == {"copied"}
    assert {run.is_deleted for run in (registered, traced)} == {False}
    assert "not deleted, because it has what is never copied: 1 registered model version" in registered.reason
    assert "not deleted, because it has what is never copied: traces" in traced.reason
    assert [(other.experiment, other.source_id, other.happened, other.reason) for other in rest] == [
        (EXPERIMENT, "", "skipped", "never copied: 1 registered model version, 2 traces"),
        ("", "", "skipped", "never copied: 1 registered model version"),
    ]


def test_what_is_sent_at_once_stays_below_what_a_server_takes():
    """A thousand metrics, a hundred tags, and a million bytes."""
    short = [RunTag(f"t{number}", "v") for number in range(250)]
    long = [RunTag(f"t{number}", "é" * 8000) for number in range(30)]

    batches = [*copying_contents._batches(short, 100)], [*copying_contents._batches(long, 100)]

    assert [len(batch) for batch in batches[0]] == [100, 100, 50]
    assert [tag for batch in batches[1] for tag in batch] == long
    assert all(len(json.dumps([dict(tag) for tag in batch])) < 1_000_000 for batch in batches[1])


def test_more_than_a_page_of_anything_is_copied(source, target):
    """MLflow gives a hundred models at a time."""

    def fill(client, run_id):
        experiment_id = client.get_run(run_id).info.experiment_id
        for number in range(101):
            client.create_logged_model(experiment_id, f"m{number}", run_id)

    make_run(source, fill=fill)

    (outcome,) = copy(source, target)

    assert outcome.counts.models == 101


def test_a_run_without_an_end_has_none_in_the_copy(source, target):
    """As when somebody has set its status by hand; MLflow would put the time of the copying there."""
    run_id = make_run(source, end=None)
    client_of(source).update_run(run_id, "FAILED")

    outcomes = [copy(source, target), copy(source, target)]

    assert [happened(each) for each in outcomes] == [{"train": "copied"}, {"train": "unchanged"}]
    assert runs_of(target)["train"].info.end_time is None


def test_artifacts_that_are_kept_elsewhere_are_fetched(make_database, target, mlflow_server):
    """A local database, with its files in a store of objects."""
    source = make_database("source")
    place = f"{mlflow_server}/api/2.0/mlflow-artifacts/artifacts/elsewhere"
    client_of(source).create_experiment(EXPERIMENT, place)
    make_run(source, fill=everything)

    (outcome,) = copy(source, target)

    assert outcome.reason is None
    assert contents(target) == contents(source)


def test_artifacts_that_cannot_be_listed_are_named(make_database, target, free_port, monkeypatch):
    """Everything else arrives, but the copy is not complete."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    source = make_database("source")
    client_of(source).create_experiment(EXPERIMENT, f"http://127.0.0.1:{free_port()}/mlflow-artifacts/artifacts/x")
    make_run(source, fill=lambda client, run_id: client.log_metric(run_id, "loss", 1))

    (outcome,) = copy(source, target)

    assert (outcome.happened, outcome.counts.metrics) == ("failed", 1)
    assert outcome.reason.startswith("artifacts: ")


def test_a_file_that_arrives_under_another_name_is_named(source, mlflow_server):
    """MLflow sends it without complaint."""
    make_experiment(source, "spaces")
    make_run(source, experiment="spaces", fill=write({" a.txt": "a"}))

    (outcome,) = copy(source, mlflow_server)

    assert (outcome.happened, outcome.reason) == ("failed", "artifact  a.txt: it was sent and did not arrive")


def test_what_an_upload_left_behind_is_no_artifact(source, target):
    """MLflow hides it as well."""
    run_id = make_run(source, fill=write({"a.txt": "a"}))
    Path(client_of(source).get_run(run_id).info.artifact_uri, ".artifact.uploading.x").touch()

    (outcome,) = copy(source, target)

    assert outcome.counts.artifacts == 1


def test_a_run_whose_parent_never_was_comes_without(source, target):
    """Its tag leads nowhere, in the source as well."""
    make_run(source, parent="f" * 32)

    (outcome,) = copy(source, target)

    assert outcome.happened == "copied"
    assert "is gone, so the copy has none" in outcome.reason


def test_a_model_may_be_used_by_a_run_that_comes_first(source, target):
    """A parent evaluates what its child has made, which is copied after it."""
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


def test_a_model_of_no_run_comes_with_the_run_that_uses_it(source, target):
    """It has nobody else."""

    def fill(client, run_id):
        model = client.create_logged_model(client.get_run(run_id).info.experiment_id, "found")
        Path("one").mkdir()
        Path("one", "weights").write_text("w")
        client.log_model_artifacts(model.model_id, "one")
        client.finalize_logged_model(model.model_id, "READY")
        client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])

    make_run(source, fill=fill)

    copy(source, target)

    (used,) = runs_of(target)["train"].inputs.model_inputs
    model = client_of(target).get_logged_model(used.model_id)
    assert (model.name, model.status, model.source_run_id or None) == ("found", "READY", None)
    assert files_of(target, model.artifact_location) == {"weights": b"w"}


def test_a_model_that_is_gone_is_named(source, target):
    """The run arrives without it."""
    run_id = make_run(source, fill=everything)
    (output,) = client_of(source).get_run(run_id).outputs.model_outputs
    client_of(source).delete_logged_model(output.model_id)

    (outcome,) = copy(source, target)

    assert outcome.happened == "copied"
    assert f"the model {output.model_id}, which it is linked to, is gone" in outcome.reason


def test_a_model_that_was_not_finished_is_not_finished_in_the_copy(source, target):
    """As when the job was killed while it logged it."""

    def fill(client, run_id):
        model = client.create_logged_model(client.get_run(run_id).info.experiment_id, "half", run_id)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])

    make_run(source, end="KILLED", fill=fill)

    (outcome,) = copy(source, target)

    (output,) = runs_of(target)["train"].outputs.model_outputs
    assert outcome.happened == "copied"
    assert client_of(target).get_logged_model(output.model_id).status == "PENDING"


def test_the_copy_of_a_registered_model_does_not_claim_to_be_registered(source, target):
    """MLflow notes in a tag where it is; the registry is not copied."""

    def fill(client, run_id):
        tags = {"mlflow.modelVersions": '[{"name": "fraud", "version": 1}]', "stage": "one"}
        client.create_logged_model(client.get_run(run_id).info.experiment_id, "model", run_id, tags)

    make_run(source, fill=fill)

    copy(source, target)

    client = client_of(target)
    (model,) = client.search_logged_models([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert set(model.tags) == {"stage", copying.COPIED_FROM}


def test_a_store_that_was_carried_elsewhere_has_its_artifacts_with_it(source, target, tmp_path):
    """It still names the folder where it once was, and MLflow would find no artifacts there, without a word."""
    make_run(source, fill=everything)
    before = contents(source)
    shutil.copytree(tmp_path / "source", tmp_path / "carried")
    shutil.rmtree(tmp_path / "source")

    (outcome,) = copy(f"sqlite:///{tmp_path}/carried/mlflow.db", target)

    assert outcome.reason is None
    assert contents(target) == before


def test_links_to_folders_are_followed_and_do_not_lead_in_circles(source, target):
    """As MLflow itself follows them."""
    run_id = make_run(source, fill=write({"sub/a.txt": "a"}))
    root = Path(client_of(source).get_run(run_id).info.artifact_uri)
    Path("outside").mkdir()
    Path("outside", "b.txt").write_text("b")
    (root / "outside").symlink_to(Path("outside").absolute())
    (root / "sub" / "up").symlink_to(root)

    copy(source, target)

    copied = runs_of(target)["train"]
    assert files_of(target, copied.info.artifact_uri) == {"sub/a.txt": b"a", "outside/b.txt": b"b"}


def test_progress_is_told_by_run_and_part(source, target):
    """Enough for a bar, and for what stands beside it."""
    make_run(source, "one", fill=write({"a.txt": "a"}))
    make_run(source, "two")
    told = []

    copy(source, target, progress=told.append)

    assert [(step.done, step.total, step.run_name) for step in told if not step.part] == [(0, 2, "one"), (1, 2, "two")]
    assert copying.Progress(0, 2, "one", "a.txt") in told


def test_nothing_of_the_process_is_changed(source, mlflow_server, capsys):
    """Neither MLflow's store, nor the environment, nor what is on stdout."""
    make_experiment(source, "quiet")
    make_run(source, experiment="quiet")
    before = dict(os.environ), mlflow.is_tracking_uri_set()

    copy(source, mlflow_server)

    assert (dict(os.environ), mlflow.is_tracking_uri_set()) == before
    assert capsys.readouterr().out == ""


def test_a_target_that_does_not_answer_is_named_without_its_password(source, free_port):
    """At once; MLflow would try for four minutes."""
    with pytest.raises(TrackingUnavailableError) as raised:
        copy(source, f"http://bob:hunter2hunter2@127.0.0.1:{free_port()}")

    assert "hunter2" not in str(raised.value)


FORWARDER = """
import socket, sys, threading

def pump(here, there):
    while data := here.recv(65536):
        there.sendall(data)
    there.shutdown(socket.SHUT_WR)

def address(text):
    host, _, port = text.partition(":")
    return host, int(port)

with socket.create_server(address(sys.argv[1])) as server:
    print("listening", flush=True)
    while True:
        here, _ = server.accept()
        there = socket.create_connection(address(sys.argv[2]))
        for ends in ((here, there), (there, here)):
            threading.Thread(target=pump, args=ends, daemon=True).start()
"""


def test_a_target_that_is_suddenly_gone_ends_the_copying(source, mlflow_server, free_port, start_python, monkeypatch):
    """It is no fault of the runs; the next time goes on."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    make_experiment(source, "gone")
    make_run(source, "one", experiment="gone", fill=write({"a.txt": "a"}))
    make_run(source, "two", experiment="gone")
    address = f"127.0.0.1:{free_port()}"
    forwarder = start_python("-c", FORWARDER, address, mlflow_server.partition("://")[2])
    forwarder.wait_for("listening")

    def cut(progress):
        if progress.part == "a.txt":
            forwarder.send(signal.SIGKILL)
            forwarder.finish()

    outcomes = []
    with pytest.raises(TrackingUnavailableError):
        outcomes.extend(copying.copy(source, f"http://{address}", progress=cut))

    assert outcomes == []
    assert happened(copy(source, mlflow_server)) == {"one": "continued", "two": "copied"}
