"""Private names of other libraries, and the features lost without them."""

from __future__ import annotations

import logging

import pytest

from autogen_team._process.private_names import Library, find


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logging:INFO", logging.INFO),
        ("logging:Logger.info", logging.Logger.info),
        ("logging:", logging),
        ("logging:Handler.formatter", None),  # set by `Handler.__init__`
        ("logging:StreamHandler.formatter", None),  # set by `__init__` of the base class
    ],
)
def test_names_are_found(name, value):
    """A name means a module, its attribute, or an attribute of a class or of its instances."""
    assert find(name, "missing") is value


@pytest.mark.parametrize(
    "name", ["logging:NONE", "logging:Logger.none", "no_such_module:", "logging:Handler.none.more"]
)
def test_missing_names_have_the_default(name):
    """`find` returns the default for a missing name."""
    assert find(name, "missing") == "missing"


def test_a_part_with_a_missing_name_warns_once(caplog):
    """`works` returns False for a part with a missing name, and warns once."""
    part = Library("Logging", "logging", "0.5").part("logging:INFO", "logging:_gone", lost="all is quiet")

    assert [part.works(), part.works()] == [False, False]
    version = logging.__version__
    (record,) = caplog.records
    assert record.getMessage() == (
        f"Logging {version} has no logging._gone, which autogen-team needs and which exists in Logging 0.5. "
        "The job runs, but all is quiet"
    )


def test_a_part_with_all_names_does_not_warn(caplog):
    """Names of newer versions may be missing without a warning."""
    part = Library("Logging", "logging", "0.5").part("logging:INFO", newer=("logging:_gone",), lost="all is quiet")

    assert part.works()
    assert caplog.records == []
