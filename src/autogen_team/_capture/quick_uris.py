"""Speeds up MLflow's lookup of the current URIs, which it makes ten times per logging call.

MLflow's own lookup reads environment variables through exceptions. It also tries to import pyspark each time, because a
Spark session may set a registry: 0.6 ms where pyspark is not installed. The results stay the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from autogen_team._process import Undo
from autogen_team._process.patches import replace
from autogen_team._process.private_names import find
from autogen_team._process.refcount import RefCount
from autogen_team._ship import mlflow_names

tracking: Any = find("mlflow.tracking._tracking_service.utils:")
registry: Any = find("mlflow.tracking._model_registry.utils:")


def _start() -> Undo:
    if not (mlflow_names.URIS.works() and mlflow_names.QUICK_URIS.works()):
        return lambda: None
    with ExitStack() as undo:
        undo.callback(replace(tracking, "_resolve_tracking_uri", _resolving_tracking))
        undo.callback(replace(registry, "_resolve_registry_uri", _resolving_registry))
        return undo.pop_all().close


def _resolving_tracking(plain: Callable[..., str], _is_active: Callable[[], bool]) -> Callable[..., str]:
    def resolve(tracking_uri: str | None = None) -> str:
        return tracking_uri or tracking._tracking_uri or _tracking_variable.get() or plain()

    return resolve


def _resolving_registry(plain: Callable[..., str | None], _is_active: Callable[[], bool]) -> Callable[..., str | None]:
    def resolve(registry_uri: str | None = None, tracking_uri: str | None = None) -> str | None:
        is_chosen = registry_uri or registry._registry_uri or _registry_variable.get()
        if not is_chosen and "pyspark" not in sys.modules:  # without it, Spark cannot have a session
            uri: str = tracking._resolve_tracking_uri(tracking_uri)
            if not uri.startswith("databricks"):  # Databricks has its own registry
                return uri
        return plain(registry_uri, tracking_uri)

    return resolve


class _Variable:
    """An environment variable, read in a tenth of the time of `os.environ.get`, which raises and catches errors."""

    def __init__(self, name: str) -> None:
        self._name, self._key = name, os.fsencode(name)
        self._raw: bytes | None = None
        self._text: str | None = None

    def get(self) -> str | None:
        """Return its value; None if it is not set."""
        try:
            raw = os.environ._data.get(self._key)  # type: ignore[attr-defined]  # CPython's own dict
        except AttributeError:  # the job has replaced `os.environ`
            return os.environ.get(self._name)
        if raw is not self._raw:
            self._text = None if raw is None else os.fsdecode(raw)
            self._raw = raw
        return self._text


_tracking_variable = _Variable("MLFLOW_TRACKING_URI")
_registry_variable = _Variable("MLFLOW_REGISTRY_URI")
quick_uris = RefCount(_start)
"""Reference-counted replacement of the lookups."""
