"""What a store answers when it is tried out: who it is, what time it has, and whether it keeps what it is given.

For `autogen-team doctor`. A trial leaves as little as the store allows: its artifact is deleted, and so is its run, for
good where MLflow's own store is at hand. A server knows no such request: there the run stays among the deleted ones,
with the tag `autogen_team.doctor`, until somebody runs `mlflow gc`.
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

from autogen_team.io._deadline import within
from autogen_team.io._tracking import places, seam
from autogen_team.io._tracking.words import first_line

TAG = "autogen_team.doctor"
DEFAULT_EXPERIMENT = "0"
"""The id of the experiment that MLflow makes in each of its own stores."""

_request: Callable[..., Any] = http_request
_credentials_of: Callable[[str], Any] = get_default_host_creds
_RESOLUTION = 2.0
"""Seconds: the Date header has whole ones, and servers such as uvicorn write it anew once in each."""
_GRACE = 3.0
"""Seconds for cleaning up after a trial that took too long."""
_FILE = "doctor.txt"
_TEXT = "written by autogen-team doctor"


@dataclass(frozen=True, slots=True)
class Server:
    """What an MLflow server says of itself."""

    version: str | None
    """None if it does not tell: `/version` is not there, or something else answers in its place."""
    status: int
    """Of the answer, as HTTP counts."""
    milliseconds: float
    ahead: tuple[float, float] | None
    """The least and the most seconds that its clock may be ahead of ours; None if its answer has no date."""


@dataclass(slots=True)
class Trial:
    """What became of a run that was made only to see whether that works."""

    store: str | None = None
    """Why the store did not keep a metric; empty if it did, None if that was not reached."""
    artifacts: str | None = None
    """The same for an artifact."""
    run_id: str = ""
    is_local: bool = False
    """Whether its artifacts are in a folder of this machine."""
    is_deleted: bool = False
    """Whether nobody sees the run any more, even if a server keeps it among the deleted ones."""
    remains: str = ""
    """What of it is still there; empty for nothing."""
    is_over: bool = False


@contextmanager
def in_brief(seconds: float) -> Iterator[None]:
    """Bound MLflow's own waiting inside the block, and let it be quiet."""
    bounds = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": f"{max(1.0, seconds):.0f}",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    give_back = [seam.keep_environment(*bounds), seam.ask_databases_once()]
    os.environ.update(bounds)
    try:
        with seam.quiet("mlflow"), seam.quiet("alembic"):
            yield
    finally:
        for each in give_back:
            each()


def ask_server(uri: str, seconds: float) -> Server:
    """Ask an HTTP server for its version, with the password, token and certificates that MLflow would use.

    Raises:
        Exception: it does not answer; MLflow, requests and the operating system each have their own.

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
    """Return the schema of a database, None if MLflow has no tables in it, and the one that this MLflow expects.

    Asked before MLflow is, which makes missing tables and alters old ones as soon as it opens a database.
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
    """Ask for one registered model; return if there is an answer.

    Raises:
        Exception: there is none, or it is a refusal.

    """
    within(seconds, partial(client.search_registered_models, max_results=1), name="autogen-team-registry")


def find_experiment(client: mlflow.MlflowClient, name: str, seconds: float) -> Experiment | None:
    """Return the experiment, deleted or not; None if there is none of this name."""
    return within(seconds, partial(client.get_experiment_by_name, name), name="autogen-team-experiment")


def get_default_experiment(client: mlflow.MlflowClient, seconds: float) -> Experiment | None:
    """Return the experiment that MLflow makes in each store; None where it is deleted or was never made."""
    try:
        found = within(seconds, partial(client.get_experiment, DEFAULT_EXPERIMENT), name="autogen-team-experiment")
    except Exception:
        return None
    return found if found.lifecycle_stage == "active" else None


def try_out(client: mlflow.MlflowClient, experiment: Experiment, seconds: float) -> Trial:
    """Make a run with a metric and a small artifact, read both back, and delete all of it; raises nothing."""
    trial = Trial()
    attempt = partial(_try_out, client, experiment, trial)
    try:
        within(seconds, attempt, name="autogen-team-trial")
    except TimeoutError as error:
        deadline = time.monotonic() + _GRACE  # whoever is merely slow still cleans up
        while not trial.is_over and time.monotonic() < deadline:
            time.sleep(0.05)
        if trial.store is None:
            trial.store = str(error)
        elif trial.artifacts is None:
            trial.artifacts = str(error)
        if trial.run_id and not trial.is_over:
            trial.remains = f"the run {trial.run_id} could not be deleted in time, and remains"
    except Exception as error:
        trial.store = first_line(error)
    return trial


def _try_out(client: mlflow.MlflowClient, experiment: Experiment, trial: Trial) -> None:
    root = places.local_place(experiment.artifact_location)
    made = [] if root is None else [path for path in (root, *root.parents) if not path.exists()]
    try:
        tags = {TAG: "true", "mlflow.note.content": "Made by `autogen-team doctor`, and deleted by it."}
        run = client.create_run(experiment.experiment_id, run_name="autogen-team doctor", tags=tags)
        trial.run_id = run.info.run_id
        trial.is_local = places.local_place(str(run.info.artifact_uri)) is not None
        try:
            trial.store = _fault_of(partial(_check_metric, client, run.info.run_id))
            trial.artifacts = _fault_of(partial(_check_artifact, client, run.info.run_id))
        finally:
            trial.remains = _remove(client, run, trial)
    finally:
        for path in made:
            with suppress(OSError):  # somebody else's files are in it by now
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
    return "" if found == _TEXT else "an artifact is read back as something else than was written"


def _remove(client: mlflow.MlflowClient, run: Run, trial: Trial) -> str:
    """Remove the run and its artifact, in the order of `mlflow gc`; return what is still there."""
    run_id = run.info.run_id
    fault = _fault_of(partial(_delete_run, client, run_id))
    trial.is_deleted = not fault
    remains = [f"the run {run_id} remains: {fault}"] if fault else []
    if fault := _fault_of(partial(_delete_artifacts, client, run)):
        remains.append(f"its artifact remains: {fault}")
    delete_for_good = seam.gc_of(client.tracking_uri)
    if trial.is_deleted and (delete_for_good is None or _fault_of(lambda: str(delete_for_good(run_id) or ""))):
        remains.append(f"the deleted run {run_id} remains")
    return "; ".join(remains)


def _delete_run(client: mlflow.MlflowClient, run_id: str) -> str:
    client.set_terminated(run_id)
    client.delete_run(run_id)
    return ""


def _delete_artifacts(client: mlflow.MlflowClient, run: Run) -> str:
    seam.artifact_repository(client, run.info.run_id, "run").delete_artifacts()
    folder = places.local_place(str(run.info.artifact_uri))
    if folder is not None:
        with suppress(OSError):
            folder.parent.rmdir()  # the run's own; MLflow's store of folders has a file in it, and deletes it itself
    return ""
