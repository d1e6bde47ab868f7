"""The manifest of MLflow's stores matches MLflow's own classes, on each MLflow version that is tested."""

from __future__ import annotations

import logging

import mlflow
import pytest
from mlflow.store.model_registry import abstract_store as abstract_registry
from mlflow.store.model_registry import file_store as registry_of_files
from mlflow.store.model_registry import rest_store as registry_of_server
from mlflow.store.model_registry import sqlalchemy_store as registry_of_database
from mlflow.store.tracking import abstract_store, file_store, rest_store, sqlalchemy_store
from packaging.version import Version

from autogen_team._capture import manifest
from autogen_team._capture.redacting_store import RedactingStore
from autogen_team._capture.store import DurableStore

NEWEST = Version("3.17")
"""MLflow version that the manifest was written for."""
STORES = {
    "tracking": (
        manifest.TRACKING,
        (
            abstract_store.AbstractStore,
            file_store.FileStore,
            rest_store.RestStore,
            sqlalchemy_store.SqlAlchemyStore,
        ),
    ),
    "registry": (
        manifest.REGISTRY,
        (
            abstract_registry.AbstractStore,
            registry_of_files.FileStore,
            registry_of_server.RestStore,
            registry_of_database.SqlAlchemyStore,
        ),
    ),
}
OLDER = frozenset({"get_metric_history_bulk"})
"""Methods of older MLflow versions that the newest may lack."""


def methods(classes) -> set[str]:
    """Return the public methods of all these classes."""
    return {name for one in classes for name in dir(one) if not name.startswith("_") and callable(getattr(one, name))}


@pytest.mark.parametrize("kind", STORES)
def test_the_manifest_names_every_method_of_mlflow(kind):
    """The manifest names every public method of MLflow's stores; a new method must be added to it."""
    rules, classes = STORES[kind]

    assert sorted(methods(classes) - rules.keys()) == []


@pytest.mark.parametrize("kind", STORES)
def test_the_manifest_names_only_methods_of_mlflow(kind):
    """The manifest names no method that the newest MLflow lacks."""
    rules, classes = STORES[kind]
    named = {name for name in rules if not name.startswith("_")} - OLDER - {"get_host_creds"}

    if Version(mlflow.__version__) < NEWEST:
        pytest.skip("only for the newest MLflow")
    assert sorted(named - methods(classes)) == []


def test_each_journalled_method_is_implemented():
    """`DurableStore` defines every journalled method, and every logging method is journalled."""
    journalled = {name for name, rule in manifest.TRACKING.items() if rule.treatment == "journalled"}

    assert journalled <= vars(DurableStore).keys()
    assert {name for name in manifest.TRACKING if name.startswith(("log_metric", "log_param", "set_tag"))} <= journalled


def test_arguments_that_are_kept_are_arguments_of_mlflow():
    """Each argument that the manifest keeps unmasked is an argument of MLflow's method."""
    import inspect

    for rules, classes in STORES.values():
        for name, rule in rules.items():
            for one in classes:
                if rule.kept and hasattr(one, name):
                    assert rule.kept <= inspect.signature(getattr(one, name)).parameters.keys(), name


class NewStore:
    """A store of a later MLflow."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.connect = lambda *given: given

    def annotate_run(self, run_id, tags, comment=None, **more) -> str:
        """Record the arguments, as a method that no manifest names."""
        self.seen = [run_id, tags, comment, more]
        return "done"


def test_a_method_missing_in_the_manifest_gets_masked_arguments(caplog):
    """A method that the manifest lacks gets masked arguments, with one warning for all its calls."""
    caplog.set_level(logging.WARNING, "autogen_team")
    plain = NewStore()
    store = RedactingStore(plain, manifest.TRACKING)
    tag = mlflow.entities.RunTag("api_key", "anything")

    for _ in range(2):
        assert store.annotate_run("a" * 32, [tag], comment="password=hunter2", extra={"token": "t0p-secret"}) == "done"

    run_id, (seen,), comment, more = plain.seen
    assert (run_id, seen.value, comment, more) == ("a" * 32, "***", "password=***", {"extra": {"token": "***"}})
    assert store.connect("password=hunter2") == ("password=hunter2",)
    (said,) = [record.message for record in caplog.records if "does not know" in record.message]
    assert "NewStore.annotate_run" in said
