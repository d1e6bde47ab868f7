"""Import MLflow into our own processes without what only a job needs of it.

`import mlflow` imports NumPy, pandas, pyarrow and SciPy where they are installed. MLflow also works without them: its
distribution `mlflow-skinny` depends on none of them. It also imports `mlflow.genai` and `mlflow.gateway`, which
evaluate and serve language models, and FastAPI with them. The keeper, the agent and the processes that it starts import
these only when they use them, which is never. All together, this saves two thirds of the CPU time of the import, or
half where a database's modules are imported too, and 100 of 213 MB.
"""

from __future__ import annotations

import gc
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_LIBRARIES = ("IPython", "matplotlib", "numpy", "pandas", "pyarrow", "pygments", "scipy", "sklearn")
_LAZY = frozenset({"mlflow.gateway", "mlflow.genai", "mlflow.genai.scorers", "mlflow.genai.scorers.online"})
_DATABASES = ("mssql", "mysql", "postgresql", "sqlite")
_GROUPS = "mlflow."
"""Prefix of the groups of entry points by which plugins register with MLflow."""


def load(uri: str = "") -> None:
    """Import MLflow, and the modules for a database if `uri` names one, unless MLflow is loaded already.

    Not for the process of a job, which may need all of MLflow. Afterwards, the libraries can be imported as usual. If
    a plugin of MLflow is installed, they are not left out, because MLflow imports the plugin, which may need them.
    IPython stays left out, because MLflow would import it for each run, to ask whether this is a notebook.
    """
    if "mlflow" in sys.modules:
        return
    found: Any = importlib.metadata.entry_points()  # of one type in Python 3.11, and of another since 3.12
    if _has_plugins(found):
        _import(uri)
        return
    try:
        with _without(_LIBRARIES), _known(found):
            _import(uri)
        sys.modules.setdefault("IPython", None)  # type: ignore[arg-type]  # see `_without`
    except ImportError:  # this version of MLflow needs one of them
        for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
            del sys.modules[name]
        _import(uri)


def _has_plugins(found: Any) -> bool:
    plugins = [one for group in found.groups if group.startswith(_GROUPS) for one in found.select(group=group)]
    return any(one.module.partition(".")[0] != "mlflow" for one in plugins)


def _import(uri: str) -> None:
    is_enabled = gc.isenabled()
    gc.disable()  # a collection finds nothing in modules, and takes a seventh of the time
    sys.meta_path.insert(0, finder := _Finder())
    try:
        import mlflow

        if uri.startswith(_DATABASES):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    finally:
        sys.meta_path.remove(finder)
        if is_enabled:
            gc.enable()


class _Finder(MetaPathFinder):
    """Finds the packages of `_LAZY`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of a lazy package; None for every other module."""
        spec = PathFinder.find_spec(name, path, target) if name in _LAZY else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Loads a package without executing its `__init__.py`."""

    def __init__(self, actual: Loader) -> None:
        self.actual = actual

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the lazy package."""
        return _Package(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing yet."""


class _Package(ModuleType):
    """A package whose `__init__.py` is executed when a name is looked up that it must define.

    Modules in the package can be imported without that; `importlib.util.LazyLoader` would execute the package then.
    """

    def __getattr__(self, name: str) -> Any:
        loader = self.__dict__["__spec__"].loader
        if name.startswith("__") or not isinstance(loader, _Loader):
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        loader.actual.exec_module(self)
        return getattr(self, name)


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


@contextmanager
def _known(found: Any) -> Iterator[None]:
    """Answer MLflow, which asks for entry points eight times, without reading the metadata of all packages again."""
    original = importlib.metadata.entry_points

    def select(**wanted: Any) -> Any:
        return found.select(**wanted)

    importlib.metadata.entry_points = select
    try:
        yield
    finally:
        importlib.metadata.entry_points = original
