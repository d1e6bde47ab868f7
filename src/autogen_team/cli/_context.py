"""Builds the context of a command from its options."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from autogen_team._services import settings
from autogen_team.cli import _look
from autogen_team.context import GlobalContext


def build(overrides: Mapping[str, str]) -> GlobalContext:
    """Return a context built from the environment and the overrides, which are text keyed by `service.field`.

    Exits with a usage error if an override names an unknown setting.
    """
    classes = GlobalContext.service_classes()
    fields: dict[str, dict[str, Any]] = {name: {} for name in classes}
    own: dict[str, Any] = {}
    for path, value in overrides.items():
        service, _, field = path.rpartition(".")
        if service in fields and field in classes[service].variables():
            fields[service][field] = settings.none_or_text(classes[service], field, value)
        elif not service and field in GlobalContext.variables():
            own[field] = settings.none_or_text(GlobalContext, field, value)
        else:
            near = difflib.get_close_matches(path, _paths(), n=1, cutoff=0.0)[0]
            _look.fail(f"unknown setting {path!r}; did you mean {near}?", _look.WRONG_USAGE)
    services: dict[str, Any] = {f"{name}_service": cls(**fields[name]) for name, cls in classes.items()}
    return GlobalContext(**services, **own)


def variables_of(overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the overrides as environment variables, for contexts that the target creates itself."""
    classes = GlobalContext.service_classes()
    names = {
        f"{name}.{field}": variable for name, cls in classes.items() for field, variable in cls.variables().items()
    }
    return {names.get(path) or GlobalContext.variables()[path]: value for path, value in overrides.items()}


def of_file() -> dict[str, str]:
    """Return the settings in `.env` as overrides."""
    texts = settings.of_file()
    paths = {
        variable: f"{name}.{field}"
        for name, cls in GlobalContext.service_classes().items()
        for field, variable in cls.variables().items()
    } | {variable: field for field, variable in GlobalContext.variables().items()}
    return {path: texts[variable] for variable, path in paths.items() if texts.get(variable)}


def _paths() -> list[str]:
    services = GlobalContext.service_classes().items()
    return [*(f"{name}.{field}" for name, cls in services for field in cls.variables()), *GlobalContext.variables()]
