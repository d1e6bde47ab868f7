"""Temporary replacements of functions of the process that other tools may replace too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from autogen_team._process import Undo

Hook: TypeAlias = Callable[..., Any]


def replace(owner: Any, name: str, make: Callable[[Hook, Callable[[], bool]], Hook]) -> Undo:
    """Replace `owner.name` with what `make` returns; return a function that gives the previous value back.

    Args:
        owner: the class or module; it may have inherited the previous value, or have none.
        name: the attribute.
        make: takes the previous value, and a function that tells whether the replacement is still in force. If another
            tool has wrapped ours meanwhile, ours stays in place and must pass every call on.

    """
    is_own = name in vars(owner)
    previous: Any = getattr(owner, name, None)
    active = True
    hook = make(previous, lambda: active)
    setattr(owner, name, hook)

    def undo() -> None:
        nonlocal active
        active = False
        if vars(owner).get(name) is not hook:
            return
        if is_own:
            setattr(owner, name, previous)
        else:
            delattr(owner, name)

    return undo
