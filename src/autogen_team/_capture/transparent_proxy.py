"""Transparent proxy for an object."""

from __future__ import annotations

from typing import Any


class TransparentProxy:
    """Forwards to `inner` whatever a subclass does not define, and passes `isinstance` checks as `inner` does."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property  # type: ignore[misc]  # a property, because isinstance reads the class from it
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride] - the same
        return type(self._inner)

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # a copy under construction has none yet
            raise AttributeError(name)
        return getattr(self._inner, name)
