"""Prints a short table of the data of a run, with the link or the command to view it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autogen_team._process import run_events
from autogen_team._process.deadline import within
from autogen_team._process.durations import duration
from autogen_team._redact import mask, mask_url
from autogen_team.cli import _look
from autogen_team.context import GlobalContext
from autogen_team.errors import ConfigurationError
from autogen_team.io.services import MlflowService

if TYPE_CHECKING:
    from typing import Self

    from mlflow import MlflowClient
    from mlflow.entities import RunInfo

_SHOWN = 5
_PATIENCE = 5.0
"""Timeout in seconds for reading the run back."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The place where the user types commands: the folder, and the store of a command without options."""

    folder: Path
    store: str | None
    """None if the settings there are invalid."""

    @classmethod
    def here(cls) -> Self:
        """Return the current folder and store; call this before MLflow is pointed to another store."""
        store = None
        with suppress(ConfigurationError):
            store = MlflowService().stores()[0]
        return cls(Path.cwd(), store)


@dataclass(slots=True)
class Summary:
    """The run to summarize, and the prompt at which the job was started."""

    prompt: Prompt
    run_id: str | None = None


@contextmanager
def printed(summary: Summary, context: GlobalContext) -> Iterator[None]:
    """Print the summary when the block ends, even by an exception; on stderr, because stdout belongs to the target.

    A failure to print the summary does not change how the job ends.
    """
    try:
        yield
    finally:
        if summary.run_id is not None:
            with suppress(Exception):
                _print(context.mlflow_service, summary)


def _print(service: MlflowService, summary: Summary) -> None:
    try:
        rows = within(_PATIENCE, partial(_rows, service, summary), name="autogen-team-summary")
    except Exception as error:
        _look.say("warning", f"run {summary.run_id} cannot be read back: {mask(str(error))}", "yellow")
    else:
        _look.rows(rows)


def _rows(service: MlflowService, summary: Summary) -> list[tuple[str, str]]:
    client = service.client()
    run_id = summary.run_id or ""
    run = client.get_run(run_id)
    seconds = (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None
    ended = run.info.status if seconds is None else f"{run.info.status} after {duration(seconds)}"
    reason = run.data.tags.get(run_events.EXCEPTION_TAG)
    metrics = [f"{key} {value:.4g}" for key, value in sorted(run.data.metrics.items()) if not key.startswith("system/")]
    models = [f"{output.model_id}" for output in (run.outputs.model_outputs if run.outputs else [])]
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    rows = [
        ("run", f"{run.info.run_name} ({run_id})"),
        ("status", f"{ended}: {reason}" if reason else ended),
        ("parameters", _count(sorted(key for key in run.data.params if not key.startswith("autogen_team.")))),
        ("metrics", _count(metrics)),
        ("models", _count(models)),
        ("registered", _count([_version(client, version.name, version.version) for version in versions])),
        ("look at it", where(service, run.info, summary.prompt)),
    ]
    return [(label, text) for label, text in rows if text]


def _version(client: MlflowClient, name: str, version: str) -> str:
    aliases = client.get_model_version(name, version).aliases
    return " ".join([f"{name} version {version}", *(f"@{alias}" for alias in aliases)])


def _count(items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)}: {', '.join(items[:_SHOWN])}{more}"


def where(service: MlflowService, info: RunInfo, prompt: Prompt) -> str:
    """Return the URL of the run on its server or, for a local store, the command to type at the prompt."""
    return service.link(info.experiment_id, info.run_id) or command_to_look(service, prompt)


def command_to_look(service: MlflowService, prompt: Prompt) -> str:
    """Return the command to type at the prompt to show the store in a browser."""
    program = Path(sys.executable).with_name("autogen-team")
    if shutil.which("autogen-team") == str(program):
        words = ["autogen-team", "ui"]
    else:
        known = program if program.exists() else Path(sys.executable)
        shown = os.path.relpath(known, prompt.folder) if known.is_relative_to(prompt.folder) else str(known)
        words = [shlex.quote(shown), *([] if known == program else ["-m", "autogen_team"]), "ui"]
    uri = service.stores()[0]
    if uri != prompt.store:
        # A password must not appear on the screen.
        words += ["--tracking-uri", shlex.quote(uri) if mask_url(uri) == uri else '"$MLFLOW_TRACKING_URI"']
    return " ".join(words)
