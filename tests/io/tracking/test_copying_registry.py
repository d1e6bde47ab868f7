"""Registered models and prompts are matched by name, and their versions are added once, under new numbers."""

from __future__ import annotations

import json
import signal

import mlflow
import pytest

from autogen_team._sync.outcomes import Registered
from testkit.copies import EXPERIMENT, client_of, copy, current, make_experiment, write

_OURS = "autogen_team."


class Echo(mlflow.pyfunc.PythonModel):
    """A model that returns its input."""

    def predict(self, model_input: list[str]) -> list[str]:
        """Return the input."""
        return model_input


def train(uri, name="fraud", *, run_name="train", experiment=EXPERIMENT):
    """Train a model in a new run, register it, and return the version."""
    with current(uri):
        mlflow.set_experiment(experiment)
        with mlflow.start_run(run_name=run_name):
            info = mlflow.pyfunc.log_model(name="model", python_model=Echo(), pip_requirements=[])
        return mlflow.register_model(info.model_uri, name, tags={"run": run_name})


def registered_by(outcomes):
    """Return the results of registered models and prompts by their names."""
    return {one.name: one for one in outcomes if isinstance(one, Registered)}


def versions_of(uri, name="fraud"):
    """Return description, tags and aliases of each version of a registered model, by its number."""
    client = client_of(uri)
    found = client.search_model_versions(f"name = '{name}'")
    return {
        int(one.version): (
            one.description or "",
            {key: value for key, value in one.tags.items() if not key.startswith(_OURS)},
            sorted(client.get_model_version(name, one.version).aliases),
        )
        for one in found
    }


@pytest.mark.parametrize("kind", ["database", "server"])
def test_a_registered_model_is_copied_whole(source, target, mlflow_server, kind):
    """Versions, aliases, tags and descriptions arrive, and the model can be loaded by its alias."""
    to = mlflow_server if kind == "server" else target
    experiment = name = f"whole {kind}"
    make_experiment(source, experiment)
    train(source, name, run_name="one", experiment=experiment)
    version = train(source, name, run_name="two", experiment=experiment)
    client = client_of(source)
    client.update_registered_model(name, "Finds fraud.")
    client.set_registered_model_tag(name, "team", "risk")
    client.update_model_version(name, version.version, "The better one.")
    client.set_registered_model_alias(name, "champion", version.version)

    outcomes = copy(source, to)

    found = registered_by(outcomes)[name]
    assert (found.happened, found.kind, found.versions, found.reason) == ("copied", "model", {"1": "1", "2": "2"}, None)
    assert versions_of(to, name) == versions_of(source, name)
    model = client_of(to).get_registered_model(name)
    assert (model.description, model.tags) == ("Finds fraud.", {"team": "risk"})
    runs = {outcome.run_name: outcome.target_id for outcome in outcomes if outcome is not found}
    assert client_of(to).get_model_version(name, "2").run_id == runs["two"]
    with current(to):
        loaded = mlflow.pyfunc.load_model(f"models:/{name}@champion")
        assert loaded.predict(["a"]) == ["a"]
        about = mlflow.models.get_model_info(f"models:/{name}@champion")
    assert about.run_id == runs["two"]
    logged = client_of(to).get_logged_model(about.model_id)
    assert f'"name": "{name}"' in logged.tags["mlflow.modelVersions"]

    again = registered_by(copy(source, to))[name]
    assert (again.happened, again.versions) == ("unchanged", {"1": "1", "2": "2"})
    assert len(versions_of(to, name)) == 2


def test_a_name_that_the_target_has_is_matched(source, target):
    """Versions are added after those of the target, once; values set on the target stay, and the outcome says so."""
    make_experiment(target, "theirs")
    theirs = train(target, run_name="theirs", experiment="theirs")
    client_of(target).set_registered_model_alias("fraud", "champion", theirs.version)
    client_of(target).update_registered_model("fraud", "Theirs.")
    ours = train(source, run_name="ours")
    client_of(source).set_registered_model_alias("fraud", "champion", ours.version)
    client_of(source).set_registered_model_alias("fraud", "latest-night", ours.version)
    client_of(source).update_registered_model("fraud", "Ours.")

    dry = registered_by(copy(source, target, dry_run=True))["fraud"]
    assert (dry.happened, dry.versions) == ("would copy", {"1": None})
    assert list(versions_of(target)) == [1]
    found = registered_by(copy(source, target))["fraud"]

    assert (found.happened, found.versions) == ("copied", {"1": "2"})
    assert found.reason == "the target keeps its own: the description, the alias champion, which is version 1 there"
    assert {number: aliases for number, (_, _, aliases) in versions_of(target).items()} == {
        1: ["champion"],
        2: ["latest-night"],
    }
    assert client_of(target).get_registered_model("fraud").description == "Theirs."
    assert registered_by(copy(source, target))["fraud"].happened == "unchanged"


def test_what_was_added_to_a_registered_model_after_its_copy_arrives(source, target):
    """A new version, and an alias, a tag and a description that were changed since, are copied."""
    first = train(source, run_name="one")
    client = client_of(source)
    client.set_registered_model_alias("fraud", "champion", first.version)
    copy(source, target)
    client.set_model_version_tag("fraud", first.version, "late", "1")
    client.update_model_version("fraud", first.version, "Late.")
    second = train(source, run_name="two")
    client.set_registered_model_alias("fraud", "champion", second.version)

    found = registered_by(copy(source, target))["fraud"]

    assert (found.happened, found.versions, found.reason) == ("continued", {"1": "1", "2": "2"}, None)
    assert versions_of(target) == versions_of(source)
    assert registered_by(copy(source, target))["fraud"].happened == "unchanged"


def test_what_a_user_of_the_target_changes_stays_changed(source, target):
    """A second copy does not undo an alias and a description that were changed on the target."""
    for name in ("one", "two"):
        train(source, run_name=name)
    client_of(source).set_registered_model_alias("fraud", "champion", "1")
    copy(source, target)
    client_of(target).set_registered_model_alias("fraud", "champion", "2")
    client_of(target).update_model_version("fraud", "1", "Changed there.")

    found = registered_by(copy(source, target))["fraud"]

    assert found.happened == "unchanged"
    assert "the alias champion, which is version 2 there" in found.reason
    assert versions_of(target)[1][0] == "Changed there."


def test_a_version_of_files_of_a_run_is_copied(source, mlflow_server, make_run):
    """A version created from a run's artifacts, as by older MLflow, is created from the copy's artifacts."""
    experiment = name = "of files"
    make_experiment(source, experiment)
    run_id = make_run(source, experiment=experiment, fill=write({"model/MLmodel": "flavors: {}"}))
    client = client_of(source)
    place = client.get_run(run_id).info.artifact_uri
    client.create_registered_model(name)
    client.create_model_version(name, f"{place}/model", run_id)
    client.create_model_version(name, f"runs:/{run_id}/model", run_id)
    client.create_model_version(name, f"models:/{name}/1")

    outcome, found = copy(source, mlflow_server)

    assert (found.happened, found.versions, found.reason) == ("copied", {"1": "1", "2": "2", "3": "3"}, None)
    there = client_of(mlflow_server)
    copied = there.get_run(outcome.target_id).info
    sources = [there.get_model_version(name, number).source for number in "123"]
    assert sources == [f"{copied.artifact_uri}/model", f"runs:/{copied.run_id}/model", f"models:/{name}/1"]


def test_versions_that_cannot_be_copied_are_named(source, target, make_run):
    """Versions of an unfinished run, of external files or of a deleted model are named with the reason."""
    running = make_run(source, "running", end=None, fill=write({"model/MLmodel": "flavors: {}"}))
    fine = make_run(source, "fine", fill=write({"model/MLmodel": "flavors: {}"}))
    client = client_of(source)
    client.create_registered_model("fraud")
    client.create_model_version("fraud", f"runs:/{running}/model", running)
    client.create_model_version("fraud", f"runs:/{fine}/model", fine)
    client.create_model_version("fraud", "/somewhere", fine)
    client.create_model_version("fraud", "s3://bucket/model")
    gone = train(source, run_name="gone")
    client.delete_logged_model(gone.source.removeprefix("models:/"))

    outcomes = copy(source, target, delete=True)

    found = registered_by(outcomes)["fraud"]
    assert found.versions == {"2": "1", "4": "2"}
    assert f"not copied: version 1, because its run {running} is not copied completely" in found.reason
    assert "not copied: version 3, because its files are at /somewhere" in found.reason
    assert f"not copied: version 5, because its logged model {gone.source.removeprefix('models:/')} is gone" in (
        found.reason
    )
    deleted = {one.run_name: one.is_deleted for one in outcomes if one is not found}
    assert deleted == {"running": False, "fine": False, "gone": False}
    client.set_terminated(running)
    assert registered_by(copy(source, target))["fraud"].versions == {"1": "3", "2": "1", "4": "2"}


def test_a_run_is_deleted_once_its_versions_have_arrived(source, target):
    """The versions stay in the source, because MLflow could not restore them, and are not added again."""
    train(source)

    outcome, found = copy(source, target, delete=True)

    assert (outcome.is_deleted, found.happened) == (True, "copied")
    (again,) = copy(source, target)
    assert (again.happened, again.versions) == ("unchanged", {"1": "1"})
    assert list(versions_of(target)) == [1]


def test_versions_that_came_from_the_target_are_not_added_again(source, target):
    """A copy back to the original store adds nothing there."""
    train(source)
    copy(source, target)

    found = registered_by(copy(target, source))["fraud"]

    assert (found.happened, found.versions) == ("unchanged", {"1": "1"})
    assert list(versions_of(source)) == [1]


def test_a_model_without_a_run_is_copied_with_its_version(source, target):
    """A registered version of a logged model without a run is copied with its files."""
    with current(source):
        mlflow.set_experiment(EXPERIMENT)
        model = mlflow.create_external_model(name="outside")
        client_of(source).create_registered_model("fraud")
        client_of(source).create_model_version("fraud", f"models:/{model.model_id}", model_id=model.model_id)

    (found,) = copy(source, target)

    assert (found.happened, found.versions, found.reason) == ("copied", {"1": "1"}, None)
    source_there = client_of(target).get_model_version("fraud", "1").source
    assert client_of(target).get_logged_model(source_there.removeprefix("models:/")).name == "outside"


KILLED = """
import sys, time
from autogen_team._process.private_names import find
from autogen_team._sync import copying

def stop_after(method):
    def stopped(*arguments, **fields):
        method(*arguments, **fields)
        print("here", flush=True)
        time.sleep(600)
    return stopped

place, _, name = sys.argv[3].rpartition(".")
setattr(find(place), name, stop_after(find(sys.argv[3])))
list(copying.copy(sys.argv[1], sys.argv[2]))
"""


@pytest.mark.parametrize(
    "moment",
    [
        "mlflow.tracing.client:TracingClient.log_spans",
        "mlflow.tracing.client:TracingClient.start_trace",
        "mlflow.tracking._model_registry.client:ModelRegistryClient.create_registered_model",
        "mlflow.tracking._model_registry.client:ModelRegistryClient.create_model_version",
        "mlflow.tracking._model_registry.client:ModelRegistryClient.set_registered_model_alias",
        "mlflow.tracking._model_registry.client:ModelRegistryClient.set_model_version_tag",
    ],
)
def test_a_copy_that_was_killed_is_completed(source, target, start_python, moment):
    """After SIGKILL the copy is continued, with each trace, span, version and alias once."""
    version = train(source)
    client_of(source).set_registered_model_alias("fraud", "champion", version.version)
    with current(source), mlflow.start_run(run_id=version.run_id), mlflow.start_span("ask"), mlflow.start_span("model"):
        pass
    mlflow.flush_trace_async_logging()
    process = start_python("-c", KILLED, source, target, moment)
    process.wait_for("here")
    process.send(signal.SIGKILL)
    process.finish()

    outcome, found = copy(source, target)

    assert (outcome.reason, found.reason, found.versions) == (None, None, {"1": "1"})
    assert versions_of(target) == versions_of(source)
    experiment_id = client_of(target).get_experiment_by_name(EXPERIMENT).experiment_id
    (trace,) = client_of(target).search_traces(locations=[experiment_id], run_id=outcome.target_id)
    assert sorted(span.name for span in trace.data.spans) == ["ask", "model"]
    assert {one.happened for one in copy(source, target)} == {"unchanged"}


@pytest.mark.parametrize("kind", ["database", "server"])
def test_prompts_are_copied(source, target, mlflow_server, kind):
    """Prompts come with their templates, settings, tags, messages and aliases."""
    to, name = (mlflow_server, "ask-server") if kind == "server" else (target, "ask-database")
    with current(source):
        mlflow.genai.register_prompt(name, "Answer {{question}}", commit_message="first", tags={"lang": "en"})
        chat = [{"role": "user", "content": "Answer {{question}} briefly"}]
        mlflow.genai.register_prompt(name, chat, model_config={"temperature": 0.5})
        mlflow.genai.set_prompt_alias(name, "production", 2)

    (found,) = copy(source, to)

    assert (found.kind, found.happened, found.versions) == ("prompt", "copied", {"1": "1", "2": "2"})
    for number in (1, 2):
        prompts = []
        for uri in (source, to):
            with current(uri):
                prompt = mlflow.genai.load_prompt(f"prompts:/{name}/{number}")
            tags = {key: value for key, value in prompt.tags.items() if not key.startswith(_OURS)}
            prompts.append((prompt.template, prompt.commit_message or "", prompt.model_config, tags, prompt.aliases))
        assert prompts[0] == prompts[1]
    (again,) = copy(source, to)
    assert (again.happened, again.versions) == ("unchanged", {"1": "1", "2": "2"})


def test_a_prompt_and_a_model_of_one_name_are_kept_apart(source, target):
    """If the target has a model with the name of a prompt, the prompt is not copied, and the remedy is named."""
    with current(source):
        mlflow.genai.register_prompt("ask", "Answer {{question}}")
    client_of(target).create_registered_model("ask")

    (found,) = copy(source, target)

    assert found.happened == "failed"
    assert "the target has a model of that name: rename one of them" in found.reason
    assert client_of(target).search_model_versions() == []


def test_a_separate_registry_gets_the_versions(source, target, make_database):
    """If registered models are in a separate store, their versions refer to runs and models of the target."""
    registry = make_database("registry")
    train(source)

    outcome, found = copy(source, target, registry=registry)

    assert (found.happened, found.versions) == ("copied", {"1": "1"})
    assert client_of(target).search_registered_models() == []
    client = mlflow.MlflowClient(target, registry)
    version = client.get_model_version("fraud", "1")
    assert version.run_id == outcome.target_id
    assert client.get_logged_model(version.source.removeprefix("models:/")).source_run_id == outcome.target_id


def test_links_to_prompts_name_the_versions_of_the_target(source, target):
    """A run and a trace that used version 1 of a prompt refer to version 2, if that is its number on the target."""
    with current(target):
        mlflow.genai.register_prompt("ask", "Theirs {{question}}")
    with current(source):
        mlflow.set_experiment(EXPERIMENT)
        prompt = mlflow.genai.register_prompt("ask", "Ours {{question}}")
        with mlflow.start_run(run_name="train"), mlflow.start_span("call") as span:
            mlflow.genai.load_prompt("prompts:/ask/1")
        mlflow.flush_trace_async_logging()
        client_of(source).link_prompt_versions_to_trace([prompt], span.trace_id)

    outcome, found = copy(source, target)

    assert (found.kind, found.happened, found.versions) == ("prompt", "copied", {"1": "2"})
    client = client_of(target)
    (trace,) = client.search_traces(locations=[client.get_experiment_by_name(EXPERIMENT).experiment_id])
    run = client.get_run(outcome.target_id)
    for tags in (trace.info.tags, run.data.tags):
        assert [(one["name"], one["version"]) for one in json.loads(tags["mlflow.linkedPrompts"])] == [("ask", "2")]


def test_evaluation_datasets_are_named(source, target):
    """Evaluation datasets are not copied, and the outcome says so."""
    experiment_id = client_of(source).get_experiment_by_name(EXPERIMENT).experiment_id
    client_of(source).create_dataset("golden", [experiment_id])

    (outcome,) = copy(source, target)

    assert (outcome.happened, outcome.source_id) == ("skipped", "")
    assert outcome.reason == "not copied: evaluation datasets (golden); create them there from their data"
