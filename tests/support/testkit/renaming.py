"""Rename a private name of a library in this process, as a later version of the library may do.

The name is replaced everywhere in the library: in its modules, classes and objects, and in the code of its functions.
So the library works as before, and only code outside the library that uses the old name fails.
"""

from __future__ import annotations

import gc
import importlib
from types import CodeType, FunctionType, ModuleType
from typing import Any

from testkit.forkserver import PRELOADED

_MODULES = (
    *(name for name in PRELOADED["job"] if name.startswith("mlflow")),
    "mlflow.tracing.processor.mlflow_v3",
    "mlflow.store.db.utils",
)
"""Modules that a job loads later; they are imported first, because a later import would use the old name."""
_PACKAGES = {"mlflow": ("mlflow",), "opentelemetry": ("mlflow", "opentelemetry"), "loguru": ("loguru",)}


def rename(name: str) -> None:
    """Rename `module:attribute` or `module:class.attribute`; import the library first."""
    module, _, path = name.partition(":")
    packages = _PACKAGES[module.partition(".")[0]]
    for one in _MODULES if "mlflow" in packages else ():
        importlib.import_module(one)
    importlib.import_module(module)
    old = path.rpartition(".")[2]
    new = f"{old}_of_later"
    # The stores have methods with the same names as MLflow's tracing client.
    apart = ("mlflow.store", "mlflow.tracing.client") if ":TracingClient." in name and old[0] != "_" else ("-",)
    gc.unfreeze()  # the fork server has frozen, and so hidden, what it imported
    for found in gc.get_objects():
        if isinstance(found, FunctionType):
            if _belongs(found.__globals__.get("__name__"), packages, apart):
                found.__code__ = _renamed(found.__code__, old, new)
        elif isinstance(found, ModuleType):
            if _belongs(found.__name__, packages, ("-",)):
                _move(vars(found), old, new)
        elif isinstance(found, type):
            is_owner = apart == ("-",) or found.__name__ == "TracingClient"
            if is_owner and _belongs(found.__module__, packages, ("-",)) and old in vars(found):
                setattr(found, new, vars(found)[old])
                delattr(found, old)
        elif _belongs(type(found).__module__, packages, apart) and hasattr(found, "__dict__"):
            _move(vars(found), old, new)


def _belongs(module: Any, packages: tuple[str, ...], apart: tuple[str, ...]) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in packages and not module.startswith(apart)


def _move(names: dict[str, Any], old: str, new: str) -> None:
    if old in names:
        names[new] = names.pop(old)


def _renamed(code: CodeType, old: str, new: str) -> CodeType:
    names = tuple(new if name == old else name for name in code.co_names)
    constants = tuple(_renamed(one, old, new) if isinstance(one, CodeType) else one for one in code.co_consts)
    return code.replace(co_names=names, co_consts=constants)
