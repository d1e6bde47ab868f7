"""Functions of the process that others may replace as well, replaced for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from autogen_team.io._job import Undo

Hook: TypeAlias = Callable[..., Any]


def replace(owner: Any, name: str, make: Callable[[Hook, Callable[[], bool]], Hook]) -> Undo:
    """Put what `make` makes in the place of `owner.name`; the returned function gives the previous one back.

    The class or module may have inherited the previous one, or have none. `make` gets the previous one, and a function
    that tells whether the replacement still holds: if another tool has wrapped ours meanwhile, ours cannot be
    taken out any more, and has to pass everything on.
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
