"""Replacements of attributes, which can be undone in any order."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from autogen_team._process.patches import replace


def naming(name):
    """Return a factory of a hook that appends a name to the result of the previous hook."""
    return lambda previous, is_active: lambda: [*previous(), name] if is_active() else previous()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_replacements_are_undone_in_any_order(order):
    """Active replacements are called, and at the end the original is restored."""

    def plain():
        return []

    owner = SimpleNamespace(hook=plain)
    undo = [replace(owner, "hook", naming(name)) for name in "abc"]
    left = ["a", "b", "c"]
    for number in order:
        undo[number]()
        undo[number]()  # a second call does nothing
        left.remove("abc"[number])
        assert owner.hook() == left

    assert owner.hook is plain


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_inherited_attribute_is_inherited_again(order):
    """After the undo, the class inherits the attribute again."""

    class Base:
        def hook(self):
            return []

    class Owner(Base):
        pass

    undo = [replace(Owner, "hook", lambda _previous, _is_active: Base.hook) for _ in order]
    assert "hook" in vars(Owner)
    for number in order:
        undo[number]()

    assert "hook" not in vars(Owner)


def test_a_wrapper_of_another_tool_stays():
    """The other tool's wrapper stays, and ours only calls the original."""
    owner = SimpleNamespace(hook=list)
    undo = replace(owner, "hook", naming("ours"))
    ours = owner.hook
    owner.hook = theirs = lambda: [*ours(), "theirs"]
    undo()

    assert owner.hook is theirs
    assert owner.hook() == ["theirs"]
