"""Run loguru's own tests twice, without and inside LoggerService, and print the differences: `make test-loguru`.

The packages of loguru do not contain the tests: the argument is a checkout of loguru at the tag of the installed
version. The tests need freezegun and colorama, which we do not lock. Exits with 1 if a test fails only inside, for an
unknown reason.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

OUTCOMES = "LOGURU_SUITE_OUTCOMES"
INSIDE = "LOGURU_SUITE_INSIDE"
KNOWN = {
    "tests/test_pickling.py::*": "an unpickled logger uses the handlers of its process",
    "tests/test_propagation.py::*": "logging handlers that print on the console are suspended",
    "tests/test_interception.py::test_remove_interception": "logging records are in the log even without a handler",
    "tests/test_interception.py::test_intercept_too_low": "logging records are in the log even without a handler",
    "tests/test_deepcopy.py::test_remove_from_original": "logger.remove() is reported once, on stderr",
    "tests/test_repr.py::*": "our handler is among the handlers",
}
"""Tests that fail inside the service by design, with the reasons; docs/logging.md explains them."""


def main(arguments: list[str]) -> int:
    """Run the tests of the checkout twice; return the exit status."""
    missing = [name for name in ("freezegun", "colorama") if importlib.util.find_spec(name) is None]
    if not arguments or not Path(arguments[0], "tests").is_dir():
        print("a checkout of loguru is needed: make test-loguru LOGURU=../loguru")
        return 2
    if missing:
        print(f"loguru's tests need {' and '.join(missing)}: {sys.executable} -m pip install {' '.join(missing)}")
        return 2
    plain, inside = (_outcomes(Path(arguments[0]), inside=inside) for inside in ("", "1"))
    changed = [name for name, outcome in plain.items() if outcome == "passed" != inside.get(name)]
    unknown = 0
    for name in changed:
        reason = next((why for pattern, why in KNOWN.items() if fnmatch.fnmatch(name, pattern)), None)
        unknown += reason is None
        print(f"{name}: {reason or 'UNKNOWN REASON'}")
    passed = list(plain.values()).count("passed")
    print(f"{passed} tests pass without the service, {passed - len(changed)} of them inside; {unknown} unknown reasons")
    return 1 if unknown or not passed else 0


def _outcomes(checkout: Path, *, inside: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "outcomes.json")
        found_in = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, OUTCOMES: str(path), INSIDE: inside, "PYTHONPATH": found_in}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
        command += ["-p", Path(__file__).stem, "--rootdir", ".", "tests"]
        subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, check=False)
        return dict(json.loads(path.read_text()))


_found: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Define the option of a mypy plugin that loguru's conftest reads."""
    if importlib.util.find_spec("pytest_mypy_plugins") is None:
        parser.addoption("--mypy-ini-file", default=None)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the outcome of a test; the test also fails if its setup or teardown fails."""
    if report.when == "call" or report.outcome != "passed":
        _found[report.nodeid] = report.outcome


def pytest_sessionfinish() -> None:
    """Write the outcomes to the file that the command reads."""
    if OUTCOMES in os.environ:
        Path(os.environ[OUTCOMES]).write_text(json.dumps(_found))


@pytest.fixture(autouse=True)
def inside_the_service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run each test inside LoggerService, after loguru's own fixture has reset the logger."""
    if not os.environ.get(INSIDE):
        yield
        return
    from autogen_team import LoggerService

    if "reset_logger" in request.fixturenames:
        request.getfixturevalue("reset_logger")
    with LoggerService(sink=str(tmp_path_factory.mktemp("log") / "ours.log"), run_log=False):
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
