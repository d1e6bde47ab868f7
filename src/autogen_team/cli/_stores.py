"""The stores that a command reads: those that a job with the same settings would use now."""

from __future__ import annotations

import os

from autogen_team._process.folders import state_folder
from autogen_team._redact import mask_url
from autogen_team._ship import ui_url
from autogen_team.cli import _look
from autogen_team.errors import ConfigurationError, TrackingUnavailableError
from autogen_team.io.services import MlflowService

_ALLOW_FILE_STORE = "MLFLOW_ALLOW_FILE_STORE"


def in_use(service: MlflowService) -> tuple[str, str]:
    """Return the tracking store and the registry that a job with these settings would use now.

    Raises:
        TrackingUnavailableError: one of them does not answer, and the mode does not allow offline work.
        ConfigurationError: a job would work offline, but no offline run has been recorded yet.

    """
    from autogen_team._ship import server_probe

    tracking, registry = service.stores()
    if service.mode == "offline":
        return _offline(service, tracking)
    try:
        server_probe.check_all((tracking, registry), service.connect_timeout)
    except TrackingUnavailableError:
        if service.mode == "online":
            raise
        return _offline(service, tracking)
    if ui_url.pages(registry) and not ui_url.pages(tracking):
        _look.say("warning", f"registered models are in {mask_url(registry)}, and are shown only there", "yellow")
        registry = tracking
    return tracking, registry


def _offline(service: MlflowService, destination: str) -> tuple[str, str]:
    from autogen_team._sync import offline_store

    store = offline_store.existing_store(state_folder(service.state_dir), destination)
    if store is None:
        raise ConfigurationError(f"there are no offline runs for {mask_url(destination)}")
    return store, store


def prepare(store: str) -> None:
    """Allow MLflow to open a folder store, and warn if there is no store yet."""
    from autogen_team._ship import uris

    if uris.is_folder(store):
        os.environ[_ALLOW_FILE_STORE] = "true"  # for us and for the server
    place = uris.local_place(store)
    if place is not None and not place.exists():
        _look.say("warning", f"there is no store at {mask_url(store)} yet: creating an empty one", "yellow")
