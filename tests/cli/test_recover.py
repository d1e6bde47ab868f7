"""`autogen-team recover`: its options. Recovery itself is tested with the journals."""

from __future__ import annotations

from pathlib import Path

import pytest

RECOVER = ("-m", "autogen_team", "recover")


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_an_unknown_setting_is_status_2(run_python, options):
    """The error is reported even if the setting would not be used."""
    status, out, err = run_python(*RECOVER, *options, "--set", "nonsense.x=1")

    assert (status, out) == (2, "")
    assert "unknown setting 'nonsense.x'" in err


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_dotenv_that_is_not_utf_8_is_one_line(run_python, options):
    """The error is one line, as with other commands."""
    Path(".env").write_bytes(b"NAME=caf\xe9\n")
    status, out, err = run_python(*RECOVER, *options)

    assert (status, out) == (2, "")
    assert err.startswith("error: .env is not valid UTF-8")
    assert err.count("\n") == 1
