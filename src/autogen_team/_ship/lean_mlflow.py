"""Import MLflow into our own processes without the data libraries that it imports where they are installed.

`import mlflow` imports NumPy, pandas, pyarrow and SciPy for functions that only a job calls. MLflow also works without
them: its distribution `mlflow-skinny` depends on none of them. For the keeper, the agent and the processes that it
starts, leaving them out saves a third of the CPU time of the import, and 80 of 217 MB.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points

_LIBRARIES = ("IPython", "matplotlib", "numpy", "pandas", "pyarrow", "scipy", "sklearn")
_DATABASES = ("mssql", "mysql", "postgresql", "sqlite")
_GROUPS = "mlflow."
"""Prefix of the groups of entry points by which plugins register with MLflow."""


def load(uri: str = "") -> None:
    """Import MLflow, and the modules for a database if `uri` names one, unless MLflow is loaded already.

    Not for the process of a job, which may need all of MLflow. Afterwards, the libraries can be imported as usual. If
    a plugin of MLflow is installed, they are not left out, because MLflow imports the plugin, which may need them.
    """
    if "mlflow" in sys.modules:
        return
    if _has_plugins():
        _import(uri)
        return
    try:
        with _without(_LIBRARIES):
            _import(uri)
    except ImportError:  # this version of MLflow needs one of them
        for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
            del sys.modules[name]
        _import(uri)


def _has_plugins() -> bool:
    found = entry_points()
    plugins = [one for group in found.groups if group.startswith(_GROUPS) for one in found.select(group=group)]
    return any(one.module.partition(".")[0] != "mlflow" for one in plugins)


def _import(uri: str) -> None:
    is_enabled = gc.isenabled()
    gc.disable()  # a collection finds nothing in modules, and takes a seventh of the time
    try:
        import mlflow

        if uri.startswith(_DATABASES):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    finally:
        if is_enabled:
            gc.enable()


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Make imports of these libraries fail inside the block, except for those that are loaded."""
    absent = dict.fromkeys(name for name in names if name not in sys.modules)
    sys.modules.update(absent)  # type: ignore[arg-type]  # None makes an import fail
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
