"""Transparent proxy for an object."""

from __future__ import annotations

from typing import Any


class TransparentProxy:
    """Proxy that forwards all attributes that a subclass does not define, and passes `isinstance` checks as `inner`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property  # type: ignore[misc]  # a property, because isinstance reads the class from it
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride] - the same
        return type(self._inner)

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # a copy under construction does not have it yet
            raise AttributeError(name)
        return getattr(self._inner, name)
