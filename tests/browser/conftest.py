"""Fixtures for a user at this machine: a folder, jobs that run there, MLflow's web UI for their runs, and a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds until something must be visible; a generous bound on hangs, because some machines are slow."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
KILLED = """\
import os
import signal
import time

import mlflow

for step in range(10):
    mlflow.log_metric("loss", 1 / (step + 1), step=step)
    print(f"epoch {step}: loss {1 / (step + 1):.2f}", flush=True)
    time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass(frozen=True)
class Console:
    """The exit status of a command and its output on the console."""

    status: int
    text: str


class Person:
    """A user who types commands in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = ("AUTOGEN_TEAM_", "MLFLOW_")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(own)} | {
            "AUTOGEN_TEAM_STATE_DIR": str(folder.with_name("state")),
            "AUTOGEN_TEAM_ALERTS_ENABLE": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",  # for jobs that take seconds; MLflow's default is 10
        }

    def run(self, *words: str) -> Console:
        """Run `autogen-team WORDS...` to its end."""
        process = self.start(*words, stderr=subprocess.STDOUT)
        text, _ = process.communicate(timeout=5 * PATIENCE)
        return Console(process.returncode, text)

    def start(self, *words: str, stderr: int | None = None) -> subprocess.Popen[str]:
        """Start `autogen-team WORDS...`."""
        command = [sys.executable, "-m", "autogen_team", *words]
        return subprocess.Popen(
            command, cwd=self.folder, env=self._environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        )


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Person:
    """Return a user with a new folder; skip the tests if there is no browser."""
    pytest.importorskip("playwright", reason="playwright is installed on Linux only")
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed: make system-deps")
    folder = tmp_path_factory.mktemp("person") / "work"
    folder.mkdir()
    return Person(folder)


@pytest.fixture(scope="module")
def demo(person: Person) -> Console:
    """Run the example of `make demo`, and return its output."""
    return person.run("run", str(ROOT / "examples" / "train.py"))


@pytest.fixture(scope="module")
def ui(person: Person, demo: Console):
    """Return the JSON that `autogen-team ui` prints; it runs until the last test of the module has ended."""
    process = person.start("ui", "--json")
    try:
        text = "".join(iter(process.stdout.readline, "}\n")) + "}"
        yield json.loads(text)
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


@pytest.fixture(scope="module")
def killed(person: Person, ui: dict[str, str]) -> Console:
    """Run a job that is killed halfway, while the web UI is open."""
    (person.folder / "night.py").write_text(KILLED)
    options = ["--description", "The training of every night.", "--tag", "fold=1"]
    return person.run("run", *options, "night.py")


@pytest.fixture(scope="module")
def browser(ui: dict[str, str], tmp_path_factory: pytest.TempPathFactory):
    """Return a browser that can reach only the URL of `ui`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=shutil.which("chromium"),
            args=FLAGS,
            viewport={"width": 1280, "height": 900},
            locale="en-GB",
        )
        context.set_default_timeout(PATIENCE * 1000)
        context.set_default_navigation_timeout(PATIENCE * 1000)
        context.route(lambda address: not address.startswith(ui["url"]), lambda route: route.abort())
        _settle_in(context.new_page(), ui["url"])
        yield context
        context.close()


def _settle_in(page, url: str) -> None:
    """Do what a user does at the first visit: close the assistant, and choose model training."""
    page.goto(url)
    page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
    page.get_by_role("button", name="Model training").click()
    page.wait_for_function("(localStorage['mlflow.workflowType_v1'] || '').includes('machine_learning')")
    page.close()


@pytest.fixture
def page(browser, ui):
    """Return a new, empty page."""
    page = browser.new_page()
    yield page
    page.close()


@pytest.fixture
def keep_picture(page):
    """Return a function that saves a screenshot of the page in `artifacts/browser`."""
    folder = ROOT / "artifacts" / "browser"

    def keep(name: str) -> None:
        page.screenshot(path=folder / f"{name}.png", animations="disabled")

    return keep
