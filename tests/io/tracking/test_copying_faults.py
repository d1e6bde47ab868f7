"""Stores that are refused, created, or fail during the copy, and the state of the process afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import mlflow
import pytest

from autogen_team._sync import copying
from autogen_team.errors import ConfigurationError, TrackingUnavailableError
from testkit.copies import client_of, copy, happened, make_experiment, write


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("sqlite:///nothing.db", "does not exist"),
        ("sqlite:///empty.db", "does not exist"),
        ("sqlite:///other.db", "is not an MLflow store"),
        ("sqlite:///text", "is not an MLflow store"),
        ("nothing", "does not exist"),
        ("file:nothing", "does not exist"),
        ("folder", "is not an MLflow store"),
        ("text", "is not an MLflow store"),
    ],
)
def test_a_source_that_is_not_a_store_is_refused(target, uri, fault):
    """A source that is not an MLflow store is refused and stays unchanged; MLflow would turn it into a store."""
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
    """A source with a schema newer than the installed MLflow is refused, and the error names the remedy."""
    with contextlib.closing(copying.sqlite3.connect(shutil.copy(migrated_database, "newer.db"))) as database:
        database.execute("UPDATE alembic_version SET version_num = 'f00'")
        database.commit()

    with pytest.raises(ConfigurationError, match=r"cannot be opened: .* schema .*mlflow db upgrade"):
        copy("sqlite:///newer.db", target)


def test_a_database_of_another_application_is_refused_as_a_target(source):
    """A database without MLflow's tables is refused as a target; MLflow would create fifty tables in it."""
    with contextlib.closing(copying.sqlite3.connect("other.db")) as database:
        database.execute("CREATE TABLE mine (id INTEGER)")

    with pytest.raises(ConfigurationError, match=r"the target sqlite:.* is not an MLflow store"):
        copy(source, "sqlite:///other.db")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{}/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite+pysqlite:///./mlflow.db?timeout=5"),
        ("mlruns", "file://{}/mlruns"),
        ("http://localhost:5000", "http://localhost:5000/"),
    ],
)
def test_a_store_is_not_copied_onto_itself(store_uri, one, other):
    """A copy is refused if source and target are the same store, however their URIs are spelled."""
    with pytest.raises(ConfigurationError, match="same store"):
        copy(one, other.format(Path.cwd()))


def test_a_dry_run_does_not_create_the_target(source, tmp_path, make_run):
    """A dry run does not create the database of the target."""
    make_run(source)

    outcomes = copy(source, f"sqlite:///{tmp_path}/new.db", dry_run=True)

    assert happened(outcomes) == {"train": "would copy"}
    assert not (tmp_path / "new.db").exists()


def test_a_missing_target_is_created(source, tmp_path, make_run):
    """A missing target database is created, as MLflow does."""
    make_run(source)

    outcomes = copy(source, f"sqlite:///{tmp_path}/new.db")

    assert happened(outcomes) == {"train": "copied"}
    assert happened(copy(source, f"sqlite:///{tmp_path}/new.db")) == {"train": "unchanged"}


def test_refused_items_are_named_without_secrets(source, target, make_run):
    """A refused parameter or run is named without secrets, and does not keep the rest from being copied."""

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


def test_a_target_that_does_not_answer_is_named_without_its_password(source, free_port):
    """A target that does not answer is reported at once, without its password."""
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


def test_losing_the_target_ends_the_copying(source, mlflow_server, free_port, start_python, monkeypatch, make_run):
    """A copy ends with an error if the target is lost, without failing runs; the next copy continues it."""
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


def test_progress_is_reported_by_run_and_part(source, target, make_run):
    """Progress is reported per run and per part of a run."""
    make_run(source, "one", fill=write({"a.txt": "a"}))
    make_run(source, "two")
    told = []

    copy(source, target, progress=told.append)

    assert [(step.done, step.total, step.run_name) for step in told if not step.part] == [(0, 2, "one"), (1, 2, "two")]
    assert copying.Progress(0, 2, "one", "a.txt") in told


def test_the_state_of_the_process_is_not_changed(source, mlflow_server, capsys, make_run):
    """Copying changes neither MLflow's store nor the environment, and prints nothing to stdout."""
    make_experiment(source, "quiet")
    make_run(source, experiment="quiet")
    before = dict(os.environ), mlflow.is_tracking_uri_set()

    copy(source, mlflow_server)

    assert (dict(os.environ), mlflow.is_tracking_uri_set()) == before
    assert capsys.readouterr().out == ""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a store in a folder with two experiments, of two ended runs each."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = tmp_path / "mlruns"
    client = client_of(str(place))
    for experiment in ("one", "two"):
        experiment_id = client.create_experiment(experiment)
        for name in ("first", "second"):
            run = client.create_run(experiment_id, run_name=f"{experiment} {name}")
            client.log_metric(run.info.run_id, "m", 1.0)
            client.set_terminated(run.info.run_id)
    return place


def meta_of(folder, name):
    """Return the `meta.yaml` of the run, or of the experiment, of this name."""
    (found,) = [path for path in folder.rglob("meta.yaml") if f"name: {name}\n" in path.read_text()]
    return found


@pytest.mark.parametrize("content", ["", "a: [", "just: this", "\0\0\0"], ids=["empty", "cut", "other", "zeros"])
def test_a_broken_run_of_a_folder_is_named_and_the_others_are_copied(folder, target, content):
    """A run of a file store with a broken `meta.yaml` fails and is named; the other runs are copied."""
    broken = meta_of(folder, "one first")
    broken.write_text(content)

    outcomes = copy(str(folder), target)

    assert happened(outcomes) == {
        "one first": "failed",
        "one second": "copied",
        "two first": "copied",
        "two second": "copied",
    }
    (failed,) = [outcome for outcome in outcomes if outcome.happened == "failed"]
    assert (failed.experiment, failed.source_id) == ("one", broken.parent.name)
    assert failed.reason.startswith(f"{broken.relative_to(folder)} cannot be read: ")


def test_a_broken_experiment_of_a_folder_is_named_and_the_others_are_copied(folder, target):
    """An experiment with a broken `meta.yaml` fails and is named; folders that are not MLflow's are ignored."""
    broken = meta_of(folder, "one")
    broken.write_text("")
    (folder / ".ipynb_checkpoints").mkdir()

    outcomes = copy(str(folder), target)

    assert happened(outcomes) == {"two first": "copied", "two second": "copied"}
    (failed,) = [outcome for outcome in outcomes if outcome.happened == "failed"]
    assert failed.reason.startswith(f"{broken.relative_to(folder)} cannot be read: ")


def test_a_broken_model_of_a_folder_keeps_no_run_from_being_copied(folder, target):
    """A broken model of a file store is named, and all runs are copied."""
    experiment_id = meta_of(folder, "one").parent.name
    client_of(str(folder)).create_logged_model(experiment_id, "model")
    (broken,) = folder.glob("*/models/*/meta.yaml")
    broken.write_text("")

    outcomes = copy(str(folder), target)

    assert list(happened(outcomes).values()) == ["copied"] * 4
    (failed,) = [outcome for outcome in outcomes if outcome.happened == "failed"]
    assert failed.reason.startswith("models cannot be read: ")
