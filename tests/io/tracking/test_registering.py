"""`MlflowService.register`: a model is registered under the service's name once its files have arrived."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from autogen_team.errors import ConfigurationError, NotStartedError, TrackingUnavailableError
from autogen_team.io.services import MlflowService


@pytest.fixture
def make_service(tmp_path):
    """Return a function that creates a service with a registry name for the test."""

    def make(uri, **fields) -> MlflowService:
        names = {"experiment_name": tmp_path.name, "registry_name": tmp_path.name}
        return MlflowService(tracking_uri=uri, autolog_disable=True, snapshot=False, **names, **fields)

    return make


def run_of(service: MlflowService):
    """Open a run without system metrics."""
    return service.run_context(service.RunConfig(name="train", log_system_metrics=False))


@pytest.mark.parametrize("kind", ["database", "server", "not durable"])
def test_a_model_is_registered_under_the_name_of_the_service(make_service, store_uri, mlflow_server, kind):
    """`register` returns the version with its number, alias, tags and run; the next version is number 2."""
    service = make_service(mlflow_server if kind == "server" else store_uri, durable=kind != "not durable")
    with service, run_of(service) as run:
        model = mlflow.create_external_model(name="model")
        version = service.register(model.model_uri, alias="champion", tags={"fold": 1})
        plain = service.register(model.model_uri)

    assert (version.name, int(version.version), version.run_id) == (service.registry_name, 1, run.info.run_id)
    assert (version.aliases, version.tags) == (["champion"], {"fold": "1"})
    assert int(plain.version) == 2
    client = service.client()
    assert int(client.get_model_version_by_alias(service.registry_name, "champion").version) == 1


def test_secrets_in_tags_of_a_version_are_masked(make_service, store_uri):
    """Tags of a version are masked like all text sent to MLflow."""
    service = make_service(store_uri)
    with service, run_of(service):
        model = mlflow.create_external_model(name="model")
        service.register(model.model_uri, tags={"source": "postgresql://ada:example-secret@db/prices"})

    version = service.client().get_model_version(service.registry_name, "1")
    assert version.tags == {"source": "postgresql://ada:***@db/prices"}


def test_a_service_that_does_not_run_registers_nothing(make_service, store_uri):
    """The error says how to start the service."""
    with pytest.raises(NotStartedError, match="call start"):
        make_service(store_uri).register("models:/m-1")


@pytest.mark.parametrize(
    "model_uri", ["", "model", "models:/", "runs:/", "runs:/abc", "/nowhere", None, "file:/nowhere"]
)
def test_a_uri_that_names_no_model_is_an_error(make_service, store_uri, model_uri):
    """The error names the value and what to pass instead, and nothing is registered."""
    service = make_service(store_uri)
    with service, pytest.raises(ConfigurationError, match="does not name a model: give the model_uri") as error:
        service.register(model_uri)

    assert repr(str(model_uri)) in str(error.value)
    assert service.client().search_registered_models() == []


@pytest.mark.parametrize("alias", ["", "latest", "V2", "a b", "x" * 256, 3])
def test_an_alias_that_mlflow_refuses_is_an_error_before_anything_is_registered(make_service, store_uri, alias):
    """The error names the value; otherwise a version without its alias would exist."""
    service = make_service(store_uri)
    with service, run_of(service):
        model = mlflow.create_external_model(name="model")
        with pytest.raises(ConfigurationError, match="is not an alias"):
            service.register(model.model_uri, alias=alias)

    assert service.client().search_registered_models() == []


def test_a_model_that_does_not_exist_is_an_error_of_mlflow(make_service, store_uri):
    """MLflow's exception is raised unchanged."""
    service = make_service(store_uri)
    with service, pytest.raises(mlflow.MlflowException, match="m-0a1b"):
        service.register("models:/m-0a1b")


def test_a_model_is_registered_once_its_files_have_arrived(make_service, server):
    """While files wait for the server, `register` raises; later the version has the files."""
    service = make_service(server.uri, connect_timeout=20.0)
    with service, run_of(service) as run:
        server.kill()
        Path("model").mkdir()
        Path("model", "MLmodel").write_text("flavors: {}")
        mlflow.log_artifacts("model", "model")
        with pytest.raises(TrackingUnavailableError, match="its files have not arrived"):
            service.register(f"runs:/{run.info.run_id}/model")
        server.start()
        version = service.register(f"runs:/{run.info.run_id}/model")
        folder = server.folder / "artifacts" / run.info.experiment_id / run.info.run_id / "artifacts"
        assert (folder / "model" / "MLmodel").read_text() == "flavors: {}"

    assert version.run_id == run.info.run_id


def test_a_model_of_a_run_begun_in_an_outage_is_registered(make_service, server):
    """The local id of the run refers to the run that the server has created since."""
    service = make_service(server.uri, connect_timeout=20.0)
    with service:
        server.kill()
        with run_of(service) as run:
            mlflow.log_text("flavors: {}", "model/MLmodel")
            server.start()
            version = service.register(f"runs:/{run.info.run_id}/model")

    client = service.client()
    assert version.run_id != run.info.run_id
    assert client.get_run(version.run_id).data.tags["autogen_team.local_run_id"] == run.info.run_id
