"""Probes of `doctor` for the tracking store and the registry: a few requests, and a trial run.

They never create a database, a table or an experiment. If one of these does not exist yet, its row says so. If a store
does not answer, there is only one timeout, and the probes that depend on the store are skipped.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from autogen_team._redact import mask_url
from autogen_team._ship import server_probe, ui_url, uris
from autogen_team._ship.error_text import first_line
from autogen_team.cli._probes import Check, unwritable
from autogen_team.errors import ConfigurationError
from autogen_team.io.services import MlflowService

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

    from autogen_team._capture import store_trial

LIMIT = 10.0
"""Timeout in seconds for the whole trial run. Each earlier request has the service's `connect_timeout`, as in a job."""
SKEW = 5.0
"""Tolerated clock difference in seconds: runs are sorted and compared by time."""

_TRACKING, _REGISTRY = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"


class _UnusableError(Exception):
    """The store cannot be probed further; has its last row, and the reason why the other rows are skipped."""

    def __init__(self, check: Check, why: str) -> None:
        super().__init__(why)
        self.check = check
        self.why = why


class Probing:
    """The probes of the tracking store and the registry of a service."""

    def __init__(self, service: MlflowService) -> None:
        self._uri = uris.absolute(service.tracking_uri)
        self._registry_uri = uris.absolute(service.registry_uri)
        self._experiment_name = service.experiment_name
        self._limit = service.connect_timeout
        self._works_offline = service.mode != "online"

    def run(self) -> list[Check]:
        """Run all probes, and return their results."""
        is_same = self._registry_uri == self._uri
        try:
            self._reach("tracking", self._uri, _TRACKING)
            from autogen_team._capture import store_trial
            from autogen_team._ship import mlflow_backend

            with store_trial.in_brief(self._limit):
                client = mlflow_backend.client(self._uri, self._registry_uri)
                tracking, server = self._tracking()
                registry = self._answer_of_registry(client) if is_same else self._registry()
                return [tracking, registry, *self._runs(client), self._clock(server)]
        except _UnusableError as error:
            names = ("registry", "experiment", "runs", "artifacts", "clock")
            skipped = {name: Check(name, "note", f"skipped: {error.why}") for name in names}
            if not is_same:
                skipped["registry"] = self._registry()
            return [error.check, *skipped.values()]

    def _reach(self, name: str, uri: str, variable: str) -> None:
        """Check that the store exists and answers.

        Raises:
            _UnusableError: it does not exist or answer, or a database has an unexpected schema.

        """
        shown = mask_url(uri)
        try:
            fault = server_probe.find_fault(uri, self._limit)
        except ConfigurationError as error:
            raise _UnusableError(
                Check(name, "fail", str(error), f"correct {variable}"), f"the {name} URI is invalid"
            ) from None
        if fault is not None:
            why = f"the {name} server does not answer"
            found = f"{shown} does not answer: {fault}"
            if self._works_offline:
                check = Check(name, "note", f"{found}; jobs work offline", "autogen-team sync, when it is back")
            else:
                remedy = f"start the server, correct {variable}, or work without it: AUTOGEN_TEAM_MLFLOW_MODE=auto"
                check = Check(name, "fail", found, remedy)
            raise _UnusableError(check, why)
        place = uris.local_place(uri)
        if place is not None and not _is_begun(place):
            fault, _ = unwritable(place.parent)
            if fault:
                check = Check(name, "fail", f"{shown} cannot be created: {fault}", f"set {variable} to another place")
            else:
                check = Check(name, "note", f"{shown} does not exist yet; the first run creates it")
            raise _UnusableError(check, f"there is no {name} store yet")
        if _is_database(uri):
            self._read_schema(name, uri)

    def _read_schema(self, name: str, uri: str) -> None:
        """Check that the database has the schema that this MLflow expects.

        Raises:
            _UnusableError: it has a different schema or no tables, or it cannot be read.

        """
        from autogen_team._capture import store_trial
        from autogen_team._process.deadline import within

        shown = mask_url(uri)
        try:
            schema, expected = within(self._limit, lambda: store_trial.schema(uri), name="autogen-team-schema")
        except Exception as error:
            remedy = "choose another store, or check this one: it is not a readable database"
            raise _UnusableError(Check(name, "fail", f"{shown}: {first_line(error)}", remedy), f"see {name}") from None
        if schema is None:
            check = Check(name, "note", f"{shown} has no MLflow tables yet; the first run creates them")
            raise _UnusableError(check, f"there are no tables in the {name} store yet")
        if schema != expected:
            found = f"{shown} has schema {schema}, but this MLflow expects {expected}"
            remedy = f"make a backup, then mlflow db upgrade '{shown}'; or install the MLflow version that wrote it"
            raise _UnusableError(Check(name, "fail", found, remedy), f"see {name}")

    def _tracking(self) -> tuple[Check, store_trial.Server | None]:
        """Check the tracking store; return the result and, if the store is a server, its answer."""
        from autogen_team._capture import store_trial

        shown = mask_url(self._uri)
        if uris.is_folder(self._uri):
            remedy = "move to sqlite:///mlflow.db: mlflow migrate-filestore"
            return Check("tracking", "note", f"{shown} is a folder, which MLflow is phasing out", remedy), None
        ours = importlib.metadata.version("mlflow-skinny")
        if not ui_url.pages(self._uri):
            return Check("tracking", "ok", f"{shown}, opened by MLflow {ours}"), None
        try:
            server = store_trial.ask_server(self._uri, self._limit)
        except Exception as error:
            remedy = f"check the server's log, or correct {_TRACKING}"
            check = Check("tracking", "fail", f"{shown}: {first_line(error)}", remedy)
            raise _UnusableError(check, "the tracking server does not answer") from None
        found = f"{shown} answers in {server.milliseconds:.0f} ms"
        if server.status in (401, 403):
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            check = Check("tracking", "fail", f"{shown} denies access (status {server.status})", remedy)
            raise _UnusableError(check, "the tracking server denies access")
        if server.version is None:
            found += f", but does not report its version (status {server.status} at /version)"
            return Check("tracking", "note", found, "make sure that it is an MLflow server"), server
        if server.version.partition(".")[0] != ours.partition(".")[0]:
            found += f": MLflow {server.version}, but {ours} is installed here"
            return Check("tracking", "note", found, "install the same major version on both sides"), server
        return Check("tracking", "ok", f"{found}: MLflow {server.version}"), server

    def _registry(self) -> Check:
        """Check a registry that is not in the tracking store."""
        try:
            self._reach("registry", self._registry_uri, _REGISTRY)
        except _UnusableError as error:
            return error.check
        from autogen_team._capture import store_trial
        from autogen_team._ship import mlflow_backend

        with store_trial.in_brief(self._limit):
            return self._answer_of_registry(mlflow_backend.client(self._registry_uri, self._registry_uri))

    def _answer_of_registry(self, client: MlflowClient) -> Check:
        from autogen_team._capture import store_trial

        shown = "the same store" if self._registry_uri == self._uri else mask_url(self._registry_uri)
        place = uris.local_place(self._registry_uri)
        if place is not None and place.is_dir() and not (place / "models").exists():  # the request would create it
            return Check("registry", "ok", f"{shown} has no models yet")
        try:
            store_trial.ask_registry(client, self._limit)
        except Exception as error:
            remedy = f"correct {_REGISTRY}, or ask for read permission"
            return Check("registry", "fail", f"{shown}: {first_line(error)}", remedy)
        return Check("registry", "ok", f"{shown} answers")

    def _runs(self, client: MlflowClient) -> Iterator[Check]:
        """Look up the experiment and create a trial run in it, or in MLflow's default experiment if it is missing."""
        from autogen_team._capture import store_trial

        name = self._experiment_name
        experiment: Experiment | None = None
        try:
            experiment = store_trial.find_experiment(client, name, self._limit)
        except Exception as error:
            why, remedy = "skipped: see experiment", "set MLFLOW_EXPERIMENT_NAME to another one"
            yield Check("experiment", "fail", f"{name!r} cannot be looked up: {first_line(error)}", remedy)
        else:
            why = "skipped: there is no experiment to test with"
            if experiment is None:
                yield Check("experiment", "note", f"{name!r} does not exist yet; the first run creates it")
                experiment = store_trial.get_default_experiment(client, self._limit)
            elif experiment.lifecycle_stage != "active":
                restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
                remedy = f"{restore}, or set MLFLOW_EXPERIMENT_NAME to another one"
                yield Check("experiment", "fail", f"{name!r} is deleted", remedy)
                experiment, why = None, "skipped: the experiment is deleted"
            else:
                yield Check("experiment", "ok", f"{name!r}, id {experiment.experiment_id}")
        if experiment is None:
            yield from (Check("runs", "note", why), Check("artifacts", "note", why))
            return
        trial = store_trial.try_out(client, experiment, LIMIT)
        is_other = experiment.name != name
        yield self._of_store(trial, f" in the experiment {experiment.name!r}" if is_other else "", is_other=is_other)
        yield self._of_artifacts(trial, mask_url(str(experiment.artifact_location)))

    def _of_store(self, trial: store_trial.Trial, where: str, *, is_other: bool) -> Check:
        left = trial.remains or "nothing of it remains"
        if trial.store:
            found = f"a run could not be written{where}: {trial.store}"
            if is_other and "PERMISSION_DENIED" in trial.store:  # the job's own experiment may allow writes
                return Check("runs", "note", found)
            remains = f"; {trial.remains}" if trial.remains else ""
            return Check("runs", "fail", found + remains, "ask for write permission, or check the store's log")
        found = f"a metric was written and read back{where}; {left}"
        if trial.remains and not trial.is_deleted:
            return Check("runs", "note", found, f"mlflow runs delete --run-id {trial.run_id}")
        return Check("runs", "ok", found)

    def _of_artifacts(self, trial: store_trial.Trial, location: str) -> Check:
        if trial.artifacts is None:
            return Check("artifacts", "note", "skipped: see runs")
        if trial.artifacts:
            remedy = "check its credentials, and install the library that it needs (for example boto3 for S3)"
            return Check("artifacts", "fail", f"{location}: {trial.artifacts}", remedy)
        found = f"a file was written and read back at {location}"
        if trial.is_local and urlsplit(self._uri).hostname not in (None, "localhost", "127.0.0.1", "::1"):
            found += ", a folder that only this machine can see"
            if self._uri.startswith("http"):
                remedy = "start the server with --artifacts-destination, so that it serves artifacts"
            else:
                remedy = "create an experiment with an artifact location that all machines can reach"
            return Check("artifacts", "note", found, remedy)
        return Check("artifacts", "ok", found)

    def _clock(self, server: store_trial.Server | None) -> Check:
        if server is None:
            if server_probe.is_server(self._uri):
                return Check("clock", "note", "not checked: the store is a database")
            return Check("clock", "ok", "the store is on this machine")
        if server.ahead is None:
            return Check("clock", "note", "not checked: the server's answer has no date")
        least, most = server.ahead
        middle, doubt = (least + most) / 2, (most - least) / 2
        word = "ahead of" if middle > 0 else "behind"
        found = f"the server's clock is {abs(middle):.1f} s {word} this one, give or take {doubt:.1f} s"
        if least > SKEW or most < -SKEW:
            return Check("clock", "note", found, "synchronize both with NTP (timedatectl): runs are sorted by time")
        return Check("clock", "ok", found)


def _is_database(uri: str) -> bool:
    return uri.partition(":")[0].partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")


def _is_begun(place: Path) -> bool:
    """Return whether MLflow has created files in the store; it does so as soon as it opens the store."""
    try:
        return (
            any(place.glob("*/meta.yaml")) or (place / "models").is_dir()
            if place.is_dir()
            else place.stat().st_size > 0
        )
    except OSError:
        return False
