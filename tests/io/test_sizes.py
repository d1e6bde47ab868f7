"""Sizes in bytes, in readable text."""

from __future__ import annotations

import pytest

from autogen_team._process import sizes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1000", 1000),
        (" 10 GB ", 10**10),
        ("10gb", 10**10),
        (".5 MiB", 2**19),
        ("2.5kB", 2500),
        ("1 TB", 10**12),
    ],
)
def test_a_size_is_read(text, expected):
    """The unit is binary or decimal, in any case, or missing."""
    assert sizes.parse(text) == expected


@pytest.mark.parametrize("text", ["", "ten", "10 gigabytes", "-1", "1e3", "nan GB"])
def test_an_invalid_size_is_an_error(text):
    """The error quotes the text and shows valid examples."""
    with pytest.raises(ValueError, match="is not a size: write a number and a unit"):
        sizes.parse(text)


@pytest.mark.parametrize(
    ("size", "expected"), [(0, "0 B"), (999, "999 B"), (999_999, "1 MB"), (1234, "1.23 kB"), (10**15, "1e+03 TB")]
)
def test_a_size_is_shown_with_three_digits(size, expected):
    """The unit is the largest that leaves a digit before the point."""
    assert sizes.show(size) == expected
