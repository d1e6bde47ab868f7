"""Private names of other libraries, and what a user loses if a version of the library lacks one.

A `Library` lists all private names of one library that this package uses. Code that needs some of them asks their
`Part` first, and works without them if any is missing. So an update of the library may disable a feature, but never
breaks the job.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

_report = logging.getLogger("autogen_team")
_MISSING = object()


class Library:
    """A library whose private names we use."""

    def __init__(self, title: str, module: str, versions: str) -> None:
        """Take the display name, the module with `__version__`, and the versions known to have the names."""
        self.title = title
        self.module = module
        self.versions = versions
        self.parts: list[Part] = []

    def part(self, *names: str, lost: str, newer: tuple[str, ...] = ()) -> Part:
        """Declare names that one feature needs; see `Part`."""
        found = Part(self, names, lost, newer)
        self.parts.append(found)
        return found


class Part:
    """Private names that one feature needs. Each name belongs to one part."""

    def __init__(self, library: Library, names: tuple[str, ...], lost: str, newer: tuple[str, ...]) -> None:
        """Declare the names.

        Args:
            library: the library that has them.
            names: each as `module:attribute` or `module:class.attribute`.
            lost: what a user loses without them, as the end of a sentence.
            newer: names that the oldest supported version lacks; the part works without them.

        """
        self.library = library
        self.names = names
        self.lost = lost
        self.newer = newer
        self._works: bool | None = None

    def works(self) -> bool:
        """Return whether all names exist; if not, report once what is lost.

        The first call imports the modules of the names.
        """
        if self._works is None:
            missing = [name for name in self.names if find(name, _MISSING) is _MISSING]
            self._works = not missing
            if missing:
                _report.warning("%s. %s", self.lacking(missing), f"The job runs, but {self.lost}")
        return self._works

    def lacking(self, missing: list[str]) -> str:
        """Return the first sentence of an error or a warning about missing names."""
        version = getattr(sys.modules.get(self.library.module), "__version__", "of an unknown version")
        text = "%s %s has no %s, which autogen-team needs and which exists in %s %s"
        named = " and no ".join(name.replace(":", ".") for name in missing)
        return text % (self.library.title, version, named, self.library.title, self.library.versions)


def find(name: str, default: Any = None) -> Any:
    """Return the object that a name such as `module:class.attribute` stands for; `default` if it does not exist.

    An attribute that `__init__` sets on each instance counts as an attribute of the class; its value is None.
    """
    module, _, attributes = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError:
        return default
    for attribute in filter(None, attributes.split(".")):
        if hasattr(found, attribute):
            found = getattr(found, attribute)
        elif isinstance(found, type) and _is_set_by_init(found, attribute):
            found = None
        else:
            return default
    return found


def _is_set_by_init(kind: type, attribute: str) -> bool:
    codes = (getattr(vars(base).get("__init__"), "__code__", None) for base in kind.__mro__)
    return any(attribute in code.co_names for code in codes if code is not None)
