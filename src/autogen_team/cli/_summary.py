"""What a run has recorded, as a short table, and how to look at it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autogen_team.cli import _look
from autogen_team.context import GlobalContext
from autogen_team.io.services import MlflowService

_SHOWN = 5


@dataclass(slots=True)
class Summary:
    """Which run to tell of."""

    run_id: str | None = None


@contextmanager
def of_run(context: GlobalContext) -> Iterator[Summary]:
    """Print the summary when the block ends, however it does; on stderr, because stdout belongs to the target."""
    summary = Summary()
    try:
        yield summary
    finally:
        if summary.run_id is not None:
            try:
                rows = _rows(context.mlflow_service, summary.run_id)
            except Exception as error:
                _look.say("warning", f"run {summary.run_id} cannot be read back: {error}", "yellow")
            else:
                _look.table(("recorded", ""), rows, stderr=True)


def _rows(service: MlflowService, run_id: str) -> list[tuple[str, str]]:
    client = service.client()
    run = client.get_run(run_id)
    seconds = (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None
    ended = run.info.status if seconds is None else f"{run.info.status} after {seconds:.1f} s"
    metrics = [f"{key} {value:.4g}" for key, value in sorted(run.data.metrics.items()) if not key.startswith("system/")]
    models = [f"{output.model_id}" for output in (run.outputs.model_outputs if run.outputs else [])]
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    rows = [
        ("run", f"{run.info.run_name} ({run_id})"),
        ("status", ended),
        ("parameters", _count(sorted(run.data.params))),
        ("metrics", _count(metrics)),
        ("models", _count(models)),
        ("registered", _count([_version(service, version.name, version.version) for version in versions])),
        ("look at it", how_to_look(service, run.info.experiment_id, run_id)),
    ]
    return [(label, text) for label, text in rows if text]


def _version(service: MlflowService, name: str, version: str) -> str:
    aliases = service.client().get_model_version(name, version).aliases
    return " ".join([f"{name} version {version}", *(f"@{alias}" for alias in aliases)])


def _count(items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)}: {', '.join(items[:_SHOWN])}{more}"


def how_to_look(service: MlflowService, experiment_id: str, run_id: str) -> str:
    """Return the run's page on its server, or the command that shows a local store."""
    link = service.link(experiment_id, run_id)
    if link is not None:
        return link
    program = Path(sys.executable).with_name("mlflow")
    shown = os.path.relpath(program) if program.is_relative_to(Path.cwd()) else str(program)
    command = f"{shown} ui --backend-store-uri {service.tracking_uri}"
    return command if importlib.util.find_spec("flask") else f"pip install 'autogen-team[ui]' && {command}"
