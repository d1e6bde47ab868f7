"""Logs the configuration of a job: flattened as parameters, and complete as an artifact."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import enum
import hashlib
import logging
import os
import posixpath
import re
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
import yaml  # type: ignore[import-untyped]  # MLflow brings it, without types
from mlflow.entities import Param

from autogen_team._capture import run_stacks
from autogen_team._redact import mask, mask_value
from autogen_team.errors import ConfigurationError, NotStartedError

ARTIFACT = "config.yaml"
LONGEST_NAME, LONGEST_VALUE, MOST_PARAMETERS = 250, 6000, 100
"""Limits of MLflow's servers: characters of a name and of a value, and parameters per request."""

_NOT_IN_NAMES = re.compile(r"[^/\w.\- :]")
_CUT = "..."
_DEEPEST = 30
_Plain = Any
"""Mappings, lists, strings, numbers, booleans and None."""

_report = logging.getLogger("autogen_team")


def log(config: object) -> None:
    """Log a configuration to the active run.

    Raises:
        NotStartedError: no run is open.
        ConfigurationError: `config` is not a configuration of a supported type.
        MlflowException: the run has a parameter of the same name with another value.

    """
    run = run_stacks.job_run()
    if run is None:
        raise NotStartedError("no run is open: log inside `with context.run(...)` or `service.run_context(...)`")
    found = plain(config)
    if not isinstance(found, dict):
        raise ConfigurationError(
            f"a {type(config).__name__} is not a configuration: log_config takes a mapping, a dataclass, a pydantic or"
            " attrs model, an argparse.Namespace or an OmegaConf config"
        )
    found = mask_value(found, mask)
    run_id, client = run.info.run_id, mlflow.MlflowClient(run_stacks.uri_of(run))
    try:
        client.log_text(run_id, yaml.safe_dump(found, sort_keys=False, allow_unicode=True), ARTIFACT)
    except Exception as error:
        _report.warning("%s could not be uploaded to run %s: %s", ARTIFACT, run_id, mask(str(error)))
    params = [Param(name, value) for name, value in flattened(found).items()]
    for begin in range(0, len(params), MOST_PARAMETERS):
        client.log_batch(run_id, params=params[begin : begin + MOST_PARAMETERS])


def plain(value: object, around: tuple[int, ...] = ()) -> _Plain:
    """Return a configuration as mappings, lists and scalars; other objects become text.

    >>> plain(argparse.Namespace(lr=0.1, sizes=(8, 16), data={"seed": None}))
    {'lr': 0.1, 'sizes': [8, 16], 'data': {'seed': None}}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return _scalar(value)
    if isinstance(value, enum.Enum):
        return plain(value.value, around)
    if id(value) in around or len(around) > _DEEPEST:
        return _CUT  # it contains itself
    around = (*around, id(value))
    fields = _fields(value)
    if fields is not None:
        return {str(plain(name, around)): plain(item, around) for name, item in fields.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, around) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item, around) for item in value), key=str)
    return _as_text(value)


def _scalar(value: bool | float | str | None) -> _Plain:
    """Return a scalar as a value of a plain type; the types of enumerations and NumPy are derived from plain types."""
    if isinstance(value, enum.Enum):
        return _scalar(value.value)
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return None if value is None else str.__str__(value)


def _fields(value: Any) -> Mapping[Any, Any] | None:
    """Return the fields of a configuration of any supported library; None for other objects."""
    kind = type(value)
    if isinstance(value, type):
        return None
    if kind.__module__.startswith("omegaconf"):
        return _of_omegaconf(value)
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
        return vars(value)
    if hasattr(kind, "model_fields") or hasattr(kind, "__fields__"):  # pydantic 2 and 1
        names = list(getattr(kind, "model_fields", None) or kind.__fields__)
        return {name: getattr(value, name) for name in names} | (getattr(value, "model_extra", None) or {})
    if hasattr(kind, "__attrs_attrs__"):
        return {field.name: getattr(value, field.name) for field in kind.__attrs_attrs__}
    return None


def _of_omegaconf(value: Any) -> Mapping[Any, Any] | None:
    """Return the content of an OmegaConf config; if one interpolation cannot be resolved, all stay unresolved."""
    convert = sys.modules["omegaconf"].OmegaConf.to_container
    try:
        found = convert(value, resolve=True)
    except Exception:
        found = convert(value, resolve=False)
    return found if isinstance(found, Mapping) else dict(enumerate(found))


def _as_text(value: Any) -> _Plain:
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a number of NumPy or PyTorch
        return plain(value.item())
    name = getattr(value, "__qualname__", None)  # of a function or a class
    return str(value) if name is None else f"{value.__module__}.{name}"


def flattened(found: Mapping[str, _Plain]) -> dict[str, str]:
    """Return the parameters of a plain configuration, with names and values that MLflow accepts.

    >>> flattened({"model": {"layers": [{"units": 8}], "sizes": [1, 2]}, "note": "a" * 7000})["model.layers.0.units"]
    '8'
    """
    params: dict[str, str] = {}
    for name, value in _leaves(found):
        allowed = _allowed(name)
        if allowed in params:
            allowed = _shortened(allowed, name)
        params[allowed] = value if len(value) <= LONGEST_VALUE else value[: LONGEST_VALUE - len(_CUT)] + _CUT
    return params


def _leaves(value: _Plain, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        items: Any = value.items()
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        items = enumerate(value)
    else:
        if name:
            yield name, str(value)
        return
    for key, item in items:
        yield from _leaves(item, f"{name}.{key}" if name else str(key) or "_")


def _allowed(name: str) -> str:
    """Return a name that MLflow accepts: letters, digits, some punctuation, and only a normalized path."""
    allowed = _NOT_IN_NAMES.sub("_", name)
    if posixpath.normpath(allowed) != allowed or allowed.startswith((".", "/")):
        allowed = "_" + allowed.replace("/", "_")
    return allowed if len(allowed) <= LONGEST_NAME else _shortened(allowed, name)


def _shortened(allowed: str, name: str) -> str:
    """Return a shortened name that differs from other names with the same beginning."""
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{allowed[: LONGEST_NAME - len(mark) - 1]}-{mark}"
