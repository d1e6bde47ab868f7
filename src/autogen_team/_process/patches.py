"""Temporary replacements of attributes that other tools may replace too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from autogen_team._process import Undo

Hook: TypeAlias = Callable[..., Any]
"""A function or method that is replaced, or replaces another."""

_in_place: list[_Patch] = []
"""Patches that are not undone yet, the latest last."""


class _Patch:
    """One replacement of an attribute."""

    def __init__(self, owner: Any, name: str, make: Callable[[Any, Callable[[], bool]], Any]) -> None:
        self.owner = owner
        self.name = name
        self.is_own = name in vars(owner)
        self.previous: Any = getattr(owner, name, None)
        self.is_active = True
        self.hook = make(self.previous, lambda: self.is_active)
        setattr(owner, name, self.hook)
        _in_place.append(self)

    def undo(self) -> None:
        if not self.is_active:
            return
        self.is_active = False
        later = _in_place[_in_place.index(self) + 1 :]
        _in_place.remove(self)
        above = next((one for one in later if one.owner is self.owner and one.name == self.name), None)
        if above is not None and above.previous is self.hook:
            above.previous, above.is_own = self.previous, self.is_own
        elif vars(self.owner).get(self.name) is not self.hook:
            return
        elif self.is_own:
            setattr(self.owner, self.name, self.previous)
        else:
            delattr(self.owner, self.name)


def replace(owner: Any, name: str, make: Callable[[Any, Callable[[], bool]], Any]) -> Undo:
    """Replace `owner.name` with what `make` returns; return a function that restores the previous value.

    Several replacements of one attribute can be undone in any order; the last undo restores the original value.

    Args:
        owner: the class, module or object; its previous value may be inherited or missing.
        name: the attribute.
        make: takes the previous value, and a function that returns whether the replacement is active. If another tool
            has wrapped our replacement, it stays in place after the undo and must pass every call on. The same holds
            while a later replacement of ours calls it.

    """
    return _Patch(owner, name, make).undo
