"""MLflow starts in many processes of a job at once."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import mlflow
import pytest

from autogen_team._capture import db_init_lock, session
from autogen_team.io.services import MlflowService

PROCESSES = 8


def test_many_processes_start_on_one_fresh_database(start_python):
    """Eight processes can start on one new database at once; with plain MLflow, most of them fail."""
    code = (
        "import mlflow; from autogen_team.io.services import MlflowService\n"
        "service = MlflowService(experiment_name='race', autolog_disable=True)\n"
        "with service, service.run_context(service.RunConfig(name='run', log_system_metrics=False)): pass"
    )
    processes = [start_python("-c", code) for _ in range(PROCESSES)]

    ends = [process.finish() for process in processes]

    assert [status for status, _, _ in ends] == [0] * PROCESSES, ends
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    assert len(client.search_runs([client.get_experiment_by_name("race").experiment_id])) == PROCESSES


def test_without_a_folder_for_locks_a_service_starts(tmp_path, caplog):
    """If the folder of locks cannot be created, `in_turn` warns and continues without a lock."""
    (tmp_path / "file").write_text("")

    with db_init_lock.in_turn("sqlite:///mlflow.db", tmp_path / "file" / "state"):
        pass

    assert "AUTOGEN_TEAM_STATE_DIR" in caplog.text


def test_on_a_file_system_without_locks_a_service_starts(tmp_path, caplog, monkeypatch):
    """On a file system without locks, such as Lustre without `-o flock`, `in_turn` warns and continues."""

    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with db_init_lock.in_turn("sqlite:///mlflow.db", tmp_path / "state"):
        pass

    assert "does not support locks" in caplog.text


def test_a_database_has_one_lock_whatever_its_options(tmp_path):
    """Different URIs of one database share one lock."""
    for uri in ("sqlite:///mlflow.db", "sqlite:///mlflow.db?timeout=5", f"sqlite:///{Path.cwd()}/mlflow.db"):
        with db_init_lock.in_turn(uri, tmp_path / "state"):
            pass

    assert len(list((tmp_path / "state" / "locks").iterdir())) == 1


def test_a_lock_can_be_entered_again_inside_itself(tmp_path, monkeypatch):
    """A block for a database can be entered again inside itself; otherwise this test would hang."""
    monkeypatch.setattr(db_init_lock, "PATIENCE", float("inf"))

    with db_init_lock.in_turn("sqlite:///mlflow.db", tmp_path), db_init_lock.in_turn("sqlite:///mlflow.db", tmp_path):
        pass


def test_threads_take_turns(tmp_path):
    """Two threads of one process take turns, as two processes do."""
    entered = threading.Event()

    def enter() -> None:
        with db_init_lock.in_turn("sqlite:///mlflow.db", tmp_path):
            entered.set()

    thread = threading.Thread(target=enter)
    with db_init_lock.in_turn("sqlite:///mlflow.db", tmp_path):
        thread.start()
        assert not entered.wait(0.2)
    thread.join(60)
    assert entered.is_set()


def test_a_second_service_starts_on_another_database(store_uri, tmp_path, monkeypatch):
    """Both services have their experiment; a service that waited for its own lock would hang."""
    monkeypatch.setattr(db_init_lock, "PATIENCE", float("inf"))
    other = f"sqlite:///{tmp_path}/other.db"

    with MlflowService(tracking_uri=store_uri, autolog_disable=True):  # noqa: SIM117 - the order is the test
        with MlflowService(tracking_uri=other, autolog_disable=True):
            pass

    assert mlflow.MlflowClient(other).get_experiment_by_name("autogen_team")


def test_the_state_folder_is_for_its_owner_only(tmp_path):
    """Only the owner can read the state folder and its folder of locks."""
    with db_init_lock.in_turn("sqlite:///mlflow.db", tmp_path / "state"):
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "state" / "locks").stat().st_mode & 0o777 == 0o700


def test_looking_up_the_experiment_sets_nothing(store_uri, monkeypatch):
    """Looking up the experiment sets no active experiment, so that a late answer changes nothing."""
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    mlflow.set_tracking_uri(store_uri)
    made = session._find_experiment("digits")

    assert session._find_experiment("digits").experiment_id == made.experiment_id
    assert mlflow.tracking.fluent._active_experiment_id is None
    assert "MLFLOW_EXPERIMENT_ID" not in os.environ
    mlflow.MlflowClient().delete_experiment(made.experiment_id)
    with pytest.raises(mlflow.MlflowException, match="deleted experiment"):
        session._find_experiment("digits")
