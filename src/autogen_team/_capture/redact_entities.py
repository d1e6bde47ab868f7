"""Redacts arguments of MLflow's stores: text, tags and parameters, nested values and MLflow's own entities.

A value is judged by its text, and a tag or parameter by its name too. An object without a secret is returned itself,
not as a copy.
"""

from __future__ import annotations

import copy
import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from mlflow.entities import Metric

from autogen_team._capture.redact_traces import Masker, hides
from autogen_team._redact import MASK, mask

_OF_MLFLOW = "mlflow."
"""Prefix of the names of MLflow's own tags, and of its modules."""
_JSON = ("{", "[", '"')
_HARMLESS = frozenset({"", "none", "null", "true", "false", MASK})
"""Values that say whether there is a secret, but do not contain it."""
_NUMBER = re.compile(r"[-+]?\d[\d_]*(?:\.\d*)?(?:e[-+]?\d+)?", re.IGNORECASE)
_COUNTED = re.compile(r"token$|^(?:n|num|max|min|total)_|_(?:count|size|len|length|limit|rate|loss)$", re.IGNORECASE)
"""Names that sound secret, but whose value is harmless if it is a number: `secret_count`, `token`."""
_FOLDER_NAME = re.compile(r"pwd$", re.IGNORECASE)
_FOLDER = re.compile(r"~?[/\\]|[A-Za-z]:[/\\]")
_DEEPEST = 12
"""Deepest nesting that is searched; entities are nested less deeply, and deeper values contain themselves."""
_PLAIN = (bool, int, float, complex, bytes, Enum, type, Metric)


def text(value: str) -> str:
    """Return a text without secrets; if it is JSON, the names in it count too."""
    return Masker(os.environ).text(value) if value.lstrip()[:1] in _JSON else mask(value)


def under(name: object, value: Any) -> Any:
    """Return the value of a tag or parameter without secrets.

    >>> under("api_key", "anything"), under("use_auth_token", "True"), under("depth", "3")
    ('***', 'True', '3')
    """
    if not isinstance(value, str):
        return _nested(name, value)
    if isinstance(name, str) and not name.startswith(_OF_MLFLOW) and hides(name):
        return value if _is_harmless(name, value) else MASK
    return text(value)


def item(found: Any) -> Any:
    """Return a tag, a parameter, or any other object with `key` and `value`, without secrets."""
    value = under(found.key, found.value)
    return found if value is found.value or value == found.value else type(found)(found.key, value)


def value(found: Any, depth: int = 0) -> Any:
    """Return any argument of a store without secrets."""
    if found is None or isinstance(found, _PLAIN) or depth > _DEEPEST:
        return found
    if isinstance(found, str):
        return text(found)
    if isinstance(found, dict):
        changed = {name: under(name, one) if isinstance(one, str) else one for name, one in found.items()}
        changed = {name: _nested(name, one, depth) for name, one in changed.items()}
        return found if all(changed[name] is found[name] for name in found) else changed
    if isinstance(found, (list, tuple, set, frozenset)):
        return _each(found, depth)
    if isinstance(getattr(found, "key", None), str) and hasattr(found, "value"):
        return item(found)
    return _entity(found, depth)


def arguments(
    method: Callable[..., Any], kept: frozenset[str], given: tuple[Any, ...], fields: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call without secrets; those that `kept` names stay as they are."""
    names = _parameters(getattr(method, "__func__", method))
    by_name = {**dict(zip(names, given, strict=False)), **fields}
    key = by_name.get("key")

    def redacted(name: str, one: Any) -> Any:
        if name in kept:
            return one
        return under(key, one) if name == "value" and key is not None else value(one)

    padded = [*names, *[""] * (len(given) - len(names))]
    return (
        [redacted(name, one) for name, one in zip(padded, given, strict=False)],
        {name: redacted(name, one) for name, one in fields.items()},
    )


@lru_cache(maxsize=512)
def _parameters(method: Callable[..., Any]) -> tuple[str, ...]:
    try:
        found = list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):  # written in C
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(parameter.name for parameter in found if parameter.kind in positional)
    return names[1:] if names[:1] == ("self",) else names


def _is_harmless(name: str, value: str) -> bool:
    if value.strip().lower() in _HARMLESS:
        return True
    if _FOLDER_NAME.search(name) and _FOLDER.match(value):  # the working folder
        return True
    return _NUMBER.fullmatch(value.strip()) is not None and _COUNTED.search(name) is not None


def _nested(name: object, found: Any, depth: int = 0) -> Any:
    """Return a value nested under a name without secrets, whether it is JSON or an MLflow entity."""
    if isinstance(found, (dict, list)):
        found = Masker(os.environ).value(found, name if isinstance(name, str) else "")
    return found if isinstance(found, str) else value(found, depth + 1)


def _each(found: Any, depth: int) -> Any:
    changed = [value(one, depth + 1) for one in found]
    if all(new is old for new, old in zip(changed, found, strict=True)):
        return found
    return type(found)(*changed) if hasattr(found, "_fields") else type(found)(changed)


def _entity(found: Any, depth: int) -> Any:
    is_known = type(found).__module__.startswith(_OF_MLFLOW) or is_dataclass(found) or hasattr(found, "model_fields")
    held = getattr(found, "__dict__", None)
    if not is_known or not held:
        return found
    changed = {name: new for name, old in held.items() if (new := value(old, depth + 1)) is not old}
    if not changed:
        return found
    redacted = copy.copy(found)
    vars(redacted).update(changed)
    return redacted
