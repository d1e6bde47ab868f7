"""Artifacts and logged models are copied one by one, and each that fails is named."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities import LoggedModelInput, LoggedModelOutput, RunTag
from sklearn.linear_model import LogisticRegression

from autogen_team._sync import contents, copying
from testkit.copies import EXPERIMENT, client_of, copy, current, files_of, make_experiment, runs_of, write


def test_names_that_mlflow_would_garble_are_not_sent_to_a_server(source, mlflow_server, make_run):
    """Names that a server cannot keep are not sent: `a#b.txt` would overwrite `a`. Others are escaped."""
    make_experiment(source, "names")
    names = {"a": "a", "a#b.txt": "b", "a?c": "c", "a%41": "d", "sp ace/ü+&;=~.txt": "e"}
    make_run(source, experiment="names", fill=write(names))

    (outcome,) = copy(source, mlflow_server)

    assert outcome.happened == "failed"
    assert all(f"artifact {name}" in outcome.reason for name in ("a#b.txt", "a%41"))
    run = client_of(mlflow_server).get_run(outcome.target_id)
    arrived = {one.path for one in client_of(mlflow_server).list_artifacts(run.info.run_id)}
    assert arrived == {"a", "a?c", "sp ace"}
    (inner,) = client_of(mlflow_server).list_artifacts(run.info.run_id, "sp ace")
    assert inner.path == "sp ace/ü+&;=~.txt"


def test_artifacts_that_cannot_be_listed_are_named(make_database, target, free_port, monkeypatch, make_run):
    """If artifacts cannot be listed, the rest is copied, and the copy counts as failed."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    source = make_database("source")
    client_of(source).create_experiment(EXPERIMENT, f"http://127.0.0.1:{free_port()}/mlflow-artifacts/artifacts/x")
    make_run(source, fill=lambda client, run_id: client.log_metric(run_id, "loss", 1))

    (outcome,) = copy(source, target)

    assert (outcome.happened, outcome.counts.metrics) == ("failed", 1)
    assert outcome.reason.startswith("artifacts: ")


def test_a_file_that_arrives_under_another_name_is_named(source, mlflow_server, make_run):
    """An artifact that MLflow stores under another name is reported as not arrived."""
    make_experiment(source, "spaces")
    make_run(source, experiment="spaces", fill=write({" a.txt": "a"}))

    (outcome,) = copy(source, mlflow_server)

    assert (outcome.happened, outcome.reason) == ("failed", "artifact  a.txt: it was sent and did not arrive")


def test_temporary_files_of_uploads_are_not_copied(source, target, make_run):
    """Temporary files of interrupted uploads are not copied."""
    run_id = make_run(source, fill=write({"a.txt": "a"}))
    Path(client_of(source).get_run(run_id).info.artifact_uri, ".artifact.uploading.x").touch()

    (outcome,) = copy(source, target)

    assert outcome.counts.artifacts == 1


def test_links_to_folders_are_followed_and_do_not_lead_in_circles(source, target, make_run):
    """Links to folders are followed, except into a folder that contains them."""
    run_id = make_run(source, fill=write({"sub/a.txt": "a"}))
    root = Path(client_of(source).get_run(run_id).info.artifact_uri)
    Path("outside").mkdir()
    Path("outside", "b.txt").write_text("b")
    (root / "outside").symlink_to(Path("outside").absolute())
    (root / "sub" / "up").symlink_to(root)

    copy(source, target)

    copied = runs_of(target)["train"]
    assert files_of(target, copied.info.artifact_uri) == {"sub/a.txt": b"a", "outside/b.txt": b"b"}


def test_a_model_can_be_loaded_from_where_it_was_copied_to(source, mlflow_server):
    """A copied model can be loaded by its new id, and its `MLmodel` names the new run and id."""
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


def test_a_model_without_a_run_is_copied_with_the_run_that_uses_it(source, target, make_run):
    """A model that no run has created is copied with the run that uses it."""

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


def test_a_model_that_was_not_finished_is_not_finished_in_the_copy(source, target, make_run):
    """A model that was never finalized stays PENDING in the copy."""

    def fill(client, run_id):
        model = client.create_logged_model(client.get_run(run_id).info.experiment_id, "half", run_id)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])

    make_run(source, end="KILLED", fill=fill)

    (outcome,) = copy(source, target)

    (output,) = runs_of(target)["train"].outputs.model_outputs
    assert outcome.happened == "copied"
    assert client_of(target).get_logged_model(output.model_id).status == "PENDING"


def test_the_copy_of_a_registered_model_does_not_claim_to_be_registered(source, target, make_run):
    """The tag that lists registered versions of a model names those of the source, and is not copied."""

    def fill(client, run_id):
        tags = {"mlflow.modelVersions": '[{"name": "fraud", "version": 1}]', "stage": "one"}
        client.create_logged_model(client.get_run(run_id).info.experiment_id, "model", run_id, tags)

    make_run(source, fill=fill)

    copy(source, target)

    client = client_of(target)
    (model,) = client.search_logged_models([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert set(model.tags) == {"stage", copying.COPIED_FROM}


def test_more_than_a_page_of_anything_is_copied(source, target, make_run):
    """All models of a run are copied, although MLflow returns only a hundred per page."""

    def fill(client, run_id):
        experiment_id = client.get_run(run_id).info.experiment_id
        for number in range(101):
            client.create_logged_model(experiment_id, f"m{number}", run_id)

    make_run(source, fill=fill)

    (outcome,) = copy(source, target)

    assert outcome.counts.models == 101


def test_batches_stay_below_the_limits_of_a_server():
    """Batches have at most 100 tags and less than a million bytes."""
    short = [RunTag(f"t{number}", "v") for number in range(250)]
    long = [RunTag(f"t{number}", "é" * 8000) for number in range(30)]

    batches = [*contents._batches(short, 100)], [*contents._batches(long, 100)]

    assert [len(batch) for batch in batches[0]] == [100, 100, 50]
    assert [tag for batch in batches[1] for tag in batch] == long
    assert all(len(json.dumps([dict(tag) for tag in batch])) < 1_000_000 for batch in batches[1])
