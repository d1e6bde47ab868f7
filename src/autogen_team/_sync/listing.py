"""List the experiments and runs of a source store, even if parts of a file store are broken.

MLflow reads a file store experiment by experiment. The whole listing fails if a single `meta.yaml` is empty, as after a
full disk. In that case, the experiments or runs are read one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.store.entities.paged_list import PagedList

from autogen_team._redact import mask
from autogen_team._ship import uris
from autogen_team._ship.error_text import first_line
from autogen_team._sync.files import Store, pages

_META = "meta.yaml"
_NAME = Path("tags", "mlflow.runName")
_NOT_EXPERIMENTS = frozenset({"models", "prompts"})

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Broken:
    """A part of a store that cannot be read."""

    experiment: str
    """Name of the experiment; empty if unknown."""
    run_name: str
    run_id: str
    reason: str
    """The fault and its place, without secrets."""


class Listing:
    """Lists the experiments and runs of a store, and records the parts that cannot be read."""

    def __init__(self, store: Store) -> None:
        self._client = store.client
        self._folder = uris.local_place(store.uri) if uris.is_folder(store.uri) else None
        self.broken: list[Broken] = []

    def experiments(self) -> list[Experiment]:
        """Return the experiments, sorted by name."""
        try:
            return list(pages(self._client.search_experiments, order_by=["name"]))
        except Exception:
            if self._folder is None:
                raise
        found = [self._one(self._client.get_experiment, path, "") for path in _kept_in(self._folder)]
        active = [one for one in found if one is not None and one.lifecycle_stage == LifecycleStage.ACTIVE]
        return sorted(active, key=lambda experiment: experiment.name)

    def runs(self, experiment: Experiment) -> list[Run]:
        """Return the runs of an experiment by start time, so that a parent comes before its children."""
        order = ["attributes.start_time ASC"]
        try:
            return list(pages(self._client.search_runs, [experiment.experiment_id], order_by=order))
        except Exception:
            if self._folder is None:
                raise
        folder = self._folder / experiment.experiment_id
        found = [self._one(self._client.get_run, path, experiment.name) for path in _kept_in(folder)]
        active = [one for one in found if one is not None and one.info.lifecycle_stage == LifecycleStage.ACTIVE]
        return sorted(active, key=lambda run: run.info.start_time)

    def attempt(self, what: str, read: Callable[[], None]) -> None:
        """Call `read` for `what`; for a file store, a failure is recorded instead of raised."""
        try:
            read()
        except Exception as error:
            if self._folder is None:
                raise
            self.broken.append(Broken("", "", "", f"{what} cannot be read: {mask(first_line(error))}"))

    def _one(self, get: Callable[[str], _Found], path: Path, experiment: str) -> _Found | None:
        try:
            return get(path.name)
        except Exception as error:
            place = path.relative_to(self._folder or path.parent)
            reason = f"{place / _META} cannot be read: {mask(first_line(error))}"
            is_run = bool(experiment)
            self.broken.append(Broken(experiment, _name(path), path.name if is_run else "", reason))
            return None


def first_page(store: Store) -> PagedList[Experiment] | None:
    """Return a page with the first experiment; None for a file store with experiments that MLflow cannot list.

    Raises:
        Exception: the store cannot be opened.

    """
    try:
        return store.client.search_experiments(max_results=1)
    except Exception:
        if uris.is_folder(store.uri) and any(_kept_in(uris.local_place(store.uri))):
            return None
        raise


def _kept_in(folder: Path | None) -> Iterator[Path]:
    """Yield the folders of experiments or runs: those with a `meta.yaml`."""
    found: Iterable[Path] = () if folder is None else sorted(folder.iterdir())
    for path in found:
        is_other = path.name.startswith(".") or path.name in _NOT_EXPERIMENTS
        if not is_other and (path / _META).is_file():
            yield path


def _name(path: Path) -> str:
    try:
        return (path / _NAME).read_text()
    except (OSError, UnicodeError):
        return ""
