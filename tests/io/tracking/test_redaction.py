"""No secret is stored by MLflow, whichever call sends it."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import (
    AssessmentSource,
    Dataset,
    DatasetInput,
    Feedback,
    InputTag,
    LoggedModelParameter,
    RunTag,
    TraceInfo,
    TraceLocation,
    TraceState,
)

from autogen_team._capture import redact_entities, traces

URL = "postgresql://bob:example-hunter2@db/runs"
"""A secret recognized by its format."""
NAMED = {"api_key": "example-anything", "depth": "3"}
"""A secret recognized by its name."""
SECRETS = (b"example-hunter2", b"example-anything")


class Source(DatasetSource):
    """A dataset source that contains a password."""

    @staticmethod
    def _get_source_type() -> str:
        return "database"

    def load(self):
        """Do nothing."""

    @staticmethod
    def _can_resolve(_) -> bool:
        return False

    @classmethod
    def _resolve(cls, _):
        return cls()

    def to_dict(self) -> dict[str, str]:
        """Return the stored description of the source."""
        return {"url": URL, "password": "example-anything"}

    @classmethod
    def from_dict(cls, _):
        """Return a source."""
        return cls()


def of_experiments(client, _run) -> None:
    """Log secrets in the name and tags of an experiment, when it is created and changed."""
    experiment_id = client.create_experiment(f"with {URL}", tags={"at": URL, **NAMED})
    client.set_experiment_tag(experiment_id, "password", "example-anything")
    client.set_experiment_tag(experiment_id, "note", URL)
    assert client.get_experiment_by_name(f"with {URL}").experiment_id == experiment_id
    client.rename_experiment(experiment_id, f"again {URL}")
    assert mlflow.set_experiment(f"again {URL}").experiment_id == experiment_id


def of_runs(client, run) -> None:
    """Log secrets in parameters, tags and names of runs, in single and batch calls."""
    mlflow.log_param("api_key", "example-anything")
    mlflow.log_params({"password": "example-anything", "depth": 3})
    mlflow.set_tag("api_key", "example-anything")
    mlflow.set_tag("config", '{"password": "example-anything", "depth": 3}')
    client.log_batch(run.info.run_id, tags=[RunTag("client_secret", "example-anything")])
    client.set_tag(run.info.run_id, "db_password", "example-anything", synchronous=False).wait()
    client.create_run("0", run_name=f"at {URL}", tags=NAMED)


def of_logged_models(client, run) -> None:
    """Log secrets in the name, parameters and tags of a logged model."""
    experiment_id = run.info.experiment_id
    model = client.create_logged_model(experiment_id, f"m-{URL.rpartition(':')[0][-3:]}", tags=NAMED, params=NAMED)
    client.log_model_params(model.model_id, {"password": "example-anything", "at": URL})
    client.set_logged_model_tags(model.model_id, {"password": "example-anything", "at": URL})
    assert client.get_logged_model(model.model_id).params["depth"] == "3"


def of_datasets(client, run) -> None:
    """Log secrets in the source of a dataset and in the tags of its use."""
    mlflow.log_input(MetaDataset(Source(), name="rows"), context=URL, tags=NAMED)
    used = Dataset("others", "digest", "database", f'{{"url": "{URL}"}}', schema="{}", profile=URL)
    client.log_inputs(run.info.run_id, [DatasetInput(used, [InputTag("password", "example-anything")])])


def of_registered_models(client, _run) -> None:
    """Log secrets in registered models and versions, which are still found by the given name."""
    name = "token=example-anything"
    client.create_registered_model(name, tags=NAMED, description=URL)
    client.update_registered_model(name, f"later {URL}")
    client.set_registered_model_tag(name, "password", "example-anything")
    version = client.create_model_version(
        name, "s3://bob:example-hunter2@bucket/model", tags=NAMED, description=URL
    ).version
    client.update_model_version(name, version, f"later {URL}")
    client.set_model_version_tag(name, version, "note", URL)
    client.set_model_version_tag(name, version, key="password", value="example-anything")
    client.set_registered_model_alias(name, "best", version)
    assert client.get_model_version_by_alias(name, "best").version == version
    client.rename_registered_model(name, "password=example-anything")


def of_prompts(client, _run) -> None:
    """Log secrets in templates, messages and tags of prompts, whose template variables stay."""
    found = client.register_prompt("greeting", f"use {URL} for {{{{ name }}}}", URL, {**NAMED})
    client.set_prompt_tag("greeting", "password", "example-anything")
    client.set_prompt_version_tag("greeting", found.version, "password", "example-anything")
    client.register_prompt("chat", [{"role": "user", "content": f"at {URL}"}])
    assert client.get_prompt_version("greeting", found.version).template.endswith("for {{ name }}")


def of_assessments(_client, _run) -> None:
    """Log secrets in values, rationales, metadata and errors of assessments, new and changed."""
    with mlflow.start_span("ask") as span:
        pass
    mlflow.flush_trace_async_logging()
    about = {"trace_id": span.trace_id, "metadata": NAMED}
    one = mlflow.log_feedback(name="good", value={"password": "example-anything"}, rationale=URL, **about)
    mlflow.log_feedback(name="bad", error=ValueError(URL), source=AssessmentSource("HUMAN", "bob"), **about)
    mlflow.log_expectation(name="answer", value=f"see {URL}", **about)
    mlflow.update_assessment(span.trace_id, one.assessment_id, Feedback(name="good", value=URL, rationale=URL))


def of_evaluation_datasets(client, run) -> None:
    """Log secrets in tags and records of an evaluation dataset."""
    found = client.create_dataset("rows", [run.info.experiment_id], tags=NAMED)
    client.set_dataset_tags(found.dataset_id, {"password": "example-anything"})
    found.merge_records([{"inputs": {"question": URL, "api_key": "example-anything"}, "expectations": {"at": URL}}])
    assert found.to_df()["inputs"][0].keys() == {"question", "api_key"}


DOORS = (
    of_experiments,
    of_runs,
    of_logged_models,
    of_datasets,
    of_registered_models,
    of_prompts,
    of_assessments,
    of_evaluation_datasets,
)


@pytest.mark.parametrize("durable", [True, False], ids=["journal", "no journal"])
def test_no_call_stores_a_secret(start_session, store_uri, tmp_path, durable):
    """No call stores a secret, recognized by format or by name, and other values are stored unchanged."""
    started = start_session(store_uri, durable=durable)
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        for door in DOORS:
            door(client, run)
    started.stop()

    holding = [path for path in tmp_path.rglob("*") if path.is_file() and "artifacts" not in path.parts]
    assert Path(store_uri.removeprefix("sqlite:///")) in holding
    assert [path.name for path in holding if any(secret in path.read_bytes() for secret in SECRETS)] == []
    stored = mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data
    assert stored.params == {"api_key": "***", "password": "***", "depth": "3"}
    assert stored.tags["config"] == '{"password": "***", "depth": 3}'


@pytest.mark.parametrize("durable", [True, False], ids=["journal", "no journal"])
def test_no_call_sends_a_secret_to_a_server(start_session, server, durable):
    """No call sends a secret to the database of a server."""
    started = start_session(server.uri, durable=durable)
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        for door in DOORS:
            door(client, run)
    started.stop()

    content = Path(server.database.removeprefix("sqlite:///")).read_bytes()
    assert [secret for secret in SECRETS if secret in content] == []


def test_the_name_of_the_service_s_own_experiment_is_redacted(start_session, store_uri):
    """The name of the experiment that the service creates at its start is masked."""
    start_session(store_uri, experiment_name=f"at {URL}")

    names = [experiment.name for experiment in mlflow.MlflowClient(store_uri).search_experiments()]
    assert sorted(names) == ["Default", "at postgresql://bob:***@db/runs"]


def test_a_separate_registry_gets_no_secret(start_session, store_uri, make_database):
    """A separate registry gets no secrets while a service runs; after `stop` it is not masked."""
    other = make_database("registry")
    started = start_session(store_uri)
    for_later = mlflow.MlflowClient(store_uri, other)
    for_later.create_registered_model("m", description=URL)
    started.stop()

    assert for_later.get_registered_model("m").description == "postgresql://bob:***@db/runs"
    for_later.update_registered_model("m", URL)
    assert for_later.get_registered_model("m").description == URL


def test_assessments_stored_with_a_trace_are_masked():
    """Assessments stored with their trace are masked, and the caller's objects stay unchanged."""
    given = Feedback(name="good", value={"password": "example-anything"}, rationale=URL)
    place = TraceLocation.from_experiment_id("0")
    (stored,) = traces._masked_info(TraceInfo("tr-1", place, 0, TraceState.OK, assessments=[given])).assessments

    assert (stored.value, stored.rationale) == ({"password": "***"}, "postgresql://bob:***@db/runs")
    assert given.rationale == URL


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("use_auth_token", "True"), ("api_key", "None"), ("password", ""), ("secret", "***"), ("pwd", "/home/bob")),
        *(("secret_count", "3"), ("token", "7"), ("max_tokens", "512"), ("eos_token", "</s>"), ("tokenizer", "bpe")),
        *(("mlflow.user", "bob"), ("depth", "3")),
    ],
)
def test_harmless_values_under_names_that_resemble_secrets_are_kept(name, value):
    """Counts, flags, folders and MLflow's own tags are kept under names that resemble secrets."""
    assert redact_entities.under(name, value) == value


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "plain",
        ["a", {"b": [1.5, "c"]}],
        ("a", "b"),
        {"depth": "3"},
        LoggedModelParameter("depth", "3"),
        [DatasetInput(Dataset("n", "d", "t", '{"url": "s3://bucket/rows"}'), [InputTag("context", "train")])],
    ],
)
def test_a_value_without_secrets_is_the_same_object(value):
    """A value without secrets is returned as the same object."""
    assert redact_entities.value(value) is value


def test_objects_of_the_caller_are_not_changed():
    """An entity with a secret is copied, so the caller's object stays unchanged."""
    given = DatasetInput(Dataset("n", "d", "t", URL), [InputTag("password", "example-anything")])
    redacted = redact_entities.value([given])[0]

    assert (given.dataset.source, given.tags[0].value) == (URL, "example-anything")
    assert (redacted.dataset.source, redacted.tags[0].value) == ("postgresql://bob:***@db/runs", "***")
