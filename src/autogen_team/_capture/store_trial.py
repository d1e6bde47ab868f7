"""Checks of a store for `autogen-team doctor`: its version, its clock, and whether it keeps a metric and an artifact.

A trial leaves as little behind as the store allows. It deletes its artifact and its run; in a store that MLflow opens
directly, it deletes the run permanently. A server has no request for that: the run stays among the deleted runs, with
the tag `autogen_team.doctor`, until `mlflow gc` removes it.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Experiment, Run
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from autogen_team._capture import mlflow_internals
from autogen_team._process import saved
from autogen_team._process.deadline import within
from autogen_team._ship import files, mlflow_backend, uris
from autogen_team._ship.error_text import first_line

TAG = "autogen_team.doctor"
DEFAULT_EXPERIMENT = "0"
"""Id of the experiment that MLflow creates in each of its own stores."""

_request: Callable[..., Any] = http_request
_credentials_of: Callable[[str], Any] = get_default_host_creds
_RESOLUTION = 2.0
"""Seconds by which a Date header may lag: it has whole seconds, and servers such as uvicorn update it once a second."""
_GRACE = 3.0
"""Seconds for cleaning up after a trial that took too long."""
_FILE = "doctor.txt"
_TEXT = "written by autogen-team doctor"


@dataclass(frozen=True, slots=True)
class Server:
    """The answer of an MLflow server to `/version`."""

    version: str | None
    """None if `/version` does not exist, or if the answer is not a version number."""
    status: int
    """HTTP status of the answer."""
    milliseconds: float
    ahead: tuple[float, float] | None
    """Minimum and maximum lead of the server's clock over ours in seconds; None if the answer has no valid date."""


@dataclass(slots=True)
class Trial:
    """Result of a test run that checks whether the store works."""

    store: str | None = None
    """Reason why the store did not keep a metric; empty if it did, None if the trial ended before this check."""
    artifacts: str | None = None
    """The same for an artifact."""
    run_id: str = ""
    is_local: bool = False
    """Whether the artifacts of the run are in a folder of this machine."""
    is_deleted: bool = False
    """Whether the run is deleted; a server may keep it among the deleted runs."""
    remains: str = ""
    """Description of what is left of the run; empty if nothing is."""
    is_over: bool = False


@contextmanager
def in_brief(seconds: float) -> Iterator[None]:
    """Limit MLflow's retries, timeouts and output inside the block."""
    bounds = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": f"{max(1.0, seconds):.0f}",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    give_back = [saved.keep_environment(*bounds), mlflow_internals.ask_databases_once()]
    os.environ.update(bounds)
    try:
        with saved.quiet("mlflow"), saved.quiet("alembic"):
            yield
    finally:
        for each in give_back:
            each()


def ask_server(uri: str, seconds: float) -> Server:
    """Ask an HTTP server for its version, with the password, token and certificates that MLflow would use.

    Raises:
        Exception: the server does not answer; MLflow, requests and the operating system raise different classes.

    """
    ask = partial(_request, _credentials_of(uri), "/version", "GET", raise_on_status=False)
    before = time.time()
    answer = within(seconds, partial(ask, max_retries=0, timeout=seconds), name="autogen-team-version")
    after = time.time()
    text = answer.text.strip() if answer.status_code == 200 else ""
    return Server(
        version=text if re.fullmatch(r"\d+\.\d+[\w.+-]*", text) else None,
        status=answer.status_code,
        milliseconds=(after - before) * 1000,
        ahead=_ahead(answer.headers.get("Date"), before, after),
    )


def _ahead(date: str | None, before: float, after: float) -> tuple[float, float] | None:
    try:
        stated = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    return stated - after, stated + _RESOLUTION - before


def schema(uri: str) -> tuple[str | None, str]:
    """Return the schema revision of a database, and the revision that this MLflow expects.

    The first is None if MLflow has no tables in the database. Call this before MLflow opens the database, because
    MLflow then creates missing tables and alters old ones.
    """
    import sqlalchemy
    from alembic.script import ScriptDirectory

    expected = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations")).get_current_head()
    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            if not sqlalchemy.inspect(connection).has_table("alembic_version"):
                return None, str(expected)
            found = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
            return None if found is None else str(found), str(expected)
    finally:
        engine.dispose()


def ask_registry(client: mlflow.MlflowClient, seconds: float) -> None:
    """Check that the registry answers, by asking for one registered model.

    Raises:
        Exception: the registry does not answer, or rejects the request.

    """
    within(seconds, partial(client.search_registered_models, max_results=1), name="autogen-team-registry")


def find_experiment(client: mlflow.MlflowClient, name: str, seconds: float) -> Experiment | None:
    """Return the experiment with this name, deleted or not; None if there is none."""
    return within(seconds, partial(client.get_experiment_by_name, name), name="autogen-team-experiment")


def get_default_experiment(client: mlflow.MlflowClient, seconds: float) -> Experiment | None:
    """Return the experiment that MLflow creates in each store; None if it is deleted or cannot be read."""
    try:
        found = within(seconds, partial(client.get_experiment, DEFAULT_EXPERIMENT), name="autogen-team-experiment")
    except Exception:
        return None
    return found if found.lifecycle_stage == "active" else None


def try_out(client: mlflow.MlflowClient, experiment: Experiment, seconds: float) -> Trial:
    """Create a run with a metric and a small artifact, read both back, and delete everything; never raises."""
    trial = Trial()
    attempt = partial(_try_out, client, experiment, trial)
    try:
        within(seconds, attempt, name="autogen-team-trial")
    except TimeoutError as error:
        deadline = time.monotonic() + _GRACE  # a trial that is merely slow still cleans up
        while not trial.is_over and time.monotonic() < deadline:
            time.sleep(0.05)
        if trial.store is None:
            trial.store = str(error)
        elif trial.artifacts is None:
            trial.artifacts = str(error)
        if trial.run_id and not trial.is_over:
            trial.remains = f"the run {trial.run_id} could not be deleted in time and remains"
    except Exception as error:
        trial.store = first_line(error)
    return trial


def _try_out(client: mlflow.MlflowClient, experiment: Experiment, trial: Trial) -> None:
    root = uris.local_place(experiment.artifact_location)
    made = [] if root is None else [path for path in (root, *root.parents) if not path.exists()]
    try:
        tags = {TAG: "true", "mlflow.note.content": "Created and deleted by `autogen-team doctor`."}
        run = client.create_run(experiment.experiment_id, run_name="autogen-team doctor", tags=tags)
        trial.run_id = run.info.run_id
        trial.is_local = uris.local_place(str(run.info.artifact_uri)) is not None
        try:
            trial.store = _fault_of(partial(_check_metric, client, run.info.run_id))
            trial.artifacts = _fault_of(partial(_check_artifact, client, run.info.run_id))
        finally:
            trial.remains = _remove(client, run, trial)
    finally:
        for path in made:
            with suppress(OSError):  # another process has put files into it
                path.rmdir()
        trial.is_over = True


def _fault_of(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:
        return first_line(error)


def _check_metric(client: mlflow.MlflowClient, run_id: str) -> str:
    client.log_metric(run_id, "doctor", 1.0)
    found = client.get_run(run_id).data.metrics.get("doctor")
    return "" if found == 1.0 else f"a metric of 1.0 is read back as {found}"


def _check_artifact(client: mlflow.MlflowClient, run_id: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, _FILE), Path(folder, "back")
        source.write_text(_TEXT)
        target.mkdir()
        client.log_artifact(run_id, str(source))
        found = Path(client.download_artifacts(run_id, _FILE, str(target))).read_text()
    return "" if found == _TEXT else "an artifact is read back with other content than was written"


def _remove(client: mlflow.MlflowClient, run: Run, trial: Trial) -> str:
    """Remove the run and its artifact, in the order of `mlflow gc`; return what is left."""
    run_id = run.info.run_id
    fault = _fault_of(partial(_delete_run, client, run_id))
    trial.is_deleted = not fault
    remains = [f"the run {run_id} remains: {fault}"] if fault else []
    if fault := _fault_of(partial(_delete_artifacts, client, run)):
        remains.append(f"its artifact remains: {fault}")
    delete_for_good = mlflow_backend.hard_delete_of(client.tracking_uri)
    if trial.is_deleted and (delete_for_good is None or _fault_of(lambda: str(delete_for_good(run_id) or ""))):
        remains.append(f"the deleted run {run_id} remains")
    return "; ".join(remains)


def _delete_run(client: mlflow.MlflowClient, run_id: str) -> str:
    client.set_terminated(run_id)
    client.delete_run(run_id)
    return ""


def _delete_artifacts(client: mlflow.MlflowClient, run: Run) -> str:
    files.repository_of(client, run.info.run_id).delete_artifacts()
    folder = uris.local_place(str(run.info.artifact_uri))
    if folder is not None:
        with suppress(OSError):
            folder.parent.rmdir()  # the run's folder; a file store keeps a file in it and deletes the folder itself
    return ""
