"""`autogen-team ui`: serve MLflow's web UI for the current store, and link to the latest run."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from rich.text import Text

from autogen_team._process.deadline import within
from autogen_team._redact import mask
from autogen_team._ship import ui_url
from autogen_team.cli import _context, _look, _server, _stores
from autogen_team.errors import MissingExtraError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["show"]

_PATIENCE = 10.0
"""Timeout in seconds for finding the latest run."""
_OTHER_SERVERS = (
    "MLFLOW_ARTIFACTS_ONLY",
    "MLFLOW_EXPOSE_PROMETHEUS",
    "MLFLOW_GUNICORN_OPTS",
    "MLFLOW_READ_REPLICA_BACKEND_STORE_URI",
    "MLFLOW_SERVER_ALLOWED_HOSTS",
    "MLFLOW_STATIC_PREFIX",
    "MLFLOW_UVICORN_OPTS",
)
"""Variables that configure a team's server on the machine where it runs. This server, for one user, ignores them."""


def show(overrides: Mapping[str, str], *, port: int | None, opens_browser: bool, as_json: bool) -> None:
    """Print the URLs of the web UI and of the latest run; if the store is not a server, serve the UI until a signal."""
    with _look.plain_warnings(), _look.plain_errors():
        service = _context.build(overrides).mlflow_service
        stores = _stores.in_use(service)
        tell = partial(_tell, service.experiment_name, stores, opens_browser=opens_browser, as_json=as_json)
        pages = ui_url.pages(stores[0])
        if pages is not None:
            tell(pages)
            return
        _require_pages()
        _stores.prepare(stores[0])
        place = _server.find_port() if port is None else _server.check_port(port)
        with _signals_exit(), _server.serving(place, _variables(*stores)) as server:
            tell(f"http://{_server.HOST}:{place}")
            _look.say("ui", "press Ctrl-C to stop", "bold")
            server.wait()


def _require_pages() -> None:
    """Raise an error if the installed MLflow has no web UI, which the library itself does not need."""
    found = importlib.util.find_spec("mlflow")  # does not import it
    folders = (found.submodule_search_locations if found else None) or []
    if not any(Path(folder, "server", "js", "build", "index.html").exists() for folder in folders):
        raise MissingExtraError(
            "MLflow's web UI needs the extra `ui`, which is not installed: pip install 'autogen-team[ui]'"
        )


def _variables(tracking: str, registry: str) -> dict[str, str]:
    """Return the environment of the server; it includes the URIs, because any user can read command lines."""
    from autogen_team._ship import uris

    variables = {name: value for name, value in os.environ.items() if name not in _OTHER_SERVERS}
    variables |= {
        "MLFLOW_BACKEND_STORE_URI": tracking,
        "MLFLOW_REGISTRY_STORE_URI": registry,
        "MLFLOW_TRACKING_URI": tracking,
        "MLFLOW_REGISTRY_URI": registry,
    }
    # The place where a job without a server keeps artifacts, so that jobs can use experiments created in the web UI.
    root = tracking if uris.is_folder(tracking) else str(Path.cwd() / "mlruns")
    variables.setdefault("MLFLOW_DEFAULT_ARTIFACT_ROOT", root)
    # MLflow's own jobs, for evaluations with language models, are not needed: four more processes of 200 MB each.
    variables.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    return variables


@contextmanager
def _signals_exit() -> Iterator[None]:
    """Turn SIGTERM, SIGHUP and Ctrl-C into an exit with status 128 plus the number of the signal."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, leave)
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def _tell(experiment: str, stores: tuple[str, str], address: str, *, opens_browser: bool, as_json: bool) -> None:
    """Print the URLs of the web UI and of the latest run, if any; open the browser on request."""
    run = _find_last_run(experiment, stores)
    link = ui_url.of_run(address, run.info.experiment_id, run.info.run_id) if run else None
    if as_json:
        _look.as_json({"url": address, "last_run": link})
    else:
        rows = [("ui", address)]
        if run and link:
            ago = _look.age(time.time() - run.info.start_time / 1000)
            rows.append(("last run", f"{link} ({run.info.run_name}, {run.info.status}, started {ago} ago)"))
        for label, text in rows:
            _look.console().print(Text.assemble((f"{label:8}", "bold"), "  ", text), soft_wrap=True)
    _flush()
    if opens_browser and not webbrowser.open(link or address):
        _look.say("warning", "no browser could be opened", "yellow")


def _find_last_run(experiment: str, stores: tuple[str, str]) -> Run | None:
    """Return the last started run of the experiment, or of all experiments if there is none with that name.

    Returns None, with a warning, if the store cannot be searched.
    """
    from autogen_team._ship import mlflow_backend  # imports MLflow, which may take longer than `_PATIENCE`

    try:
        client = mlflow_backend.client(*stores)
        return within(_PATIENCE, partial(_last_run, experiment, client), name="autogen-team-last-run")
    except Exception as error:  # for example, a server that requires a login still has a web UI
        _look.say("warning", f"the last run could not be looked up: {mask(str(error))}", "yellow")
        return None


def _last_run(experiment: str, client: MlflowClient) -> Run | None:
    named = client.get_experiment_by_name(experiment)
    if named is not None and named.lifecycle_stage == "active":
        experiments = [named.experiment_id]
    else:
        experiments = [each.experiment_id for each in client.search_experiments()]
    return next(iter(client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)), None)


def _flush() -> None:
    """Flush the URLs now; a pipe would hold them back until the end."""
    _look.console().file.flush()
