"""An object that stands in for another one, and is taken for it."""

from __future__ import annotations

from typing import Any


class StandIn:
    """Answers for `inner` whatever a subclass does not answer itself, and `isinstance` as `inner` does."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property  # type: ignore[misc]  # a property is what makes isinstance believe it
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride] - the same
        return type(self._inner)

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._inner, name)
