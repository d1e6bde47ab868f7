"""Fixtures for a user at this machine: a folder, jobs that run there, MLflow's web UI for their runs, and a browser.

All tests share the folder, the server and one page of the browser, because each costs seconds. The pictures of the
documentation are made by `make screenshots`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testkit import forkserver, repositories

ROOT = Path(__file__).parents[2]
MAKES_PICTURES = bool(os.environ.get("SCREENSHOTS"))
"""Whether the tests make the pictures in `docs/images` anew."""
PATIENCE = 60.0
"""Seconds until something must be visible; a generous bound on hangs, because some machines are slow."""
WIDTH, HEIGHT = 860, 900
SCALE = 2
"""Pixels of a picture for each pixel of the page, so that text is sharp on any screen."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
SAVED = re.compile(r"[Ss]ave this as `([\w.]+)`.*?```py\n(.*?)```\n", re.DOTALL)
"""A file that a page of the documentation asks its reader to save."""
RUN_ID = re.compile(r"^run +.*\((\w{32})\)$", re.MULTILINE)
TEAM = "team"
"""The experiment of all jobs but those of the tutorial, whose picture shows a list of four runs."""
NIGHTLY = """\
import os
import signal

import mlflow

from autogen_team import GlobalContext

with GlobalContext() as context, context.run("train"):
    last = context.last_step("loss")
    for step in range(0 if last is None else last + 1, 8):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
        print(f"step {step}", flush=True)
        if step == 4 and context.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
"""
EVALUATE = """\
import queue
import threading

import mlflow


def read_shard(lock, batches):
    with lock:
        batches.put([1, 2, 3])


def evaluate(batches):
    return sum(batches.get())


lock, batches = threading.Lock(), queue.Queue()
mlflow.log_metric("loss", 0.5)
with lock:
    threading.Thread(target=read_shard, args=(lock, batches), daemon=True).start()
    evaluate(batches)
"""
DIVERGES = """\
import itertools
import time

import mlflow

for step in itertools.count():
    mlflow.log_metric("loss", 1.1**step, step=step)
    time.sleep(0.5)
"""


@dataclass(frozen=True)
class Console:
    """The exit status of a command, and its output on the console."""

    status: int
    text: str

    @property
    def run_id(self) -> str:
        """The id of its run, as its summary says."""
        return RUN_ID.search(self.text)[1]


class Person:
    """A user who types commands in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = f"sqlite:///{folder / 'mlflow.db'}"
        own = ("AUTOGEN_TEAM_", "MLFLOW_")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(own)} | {
            "AUTOGEN_TEAM_STATE_DIR": str(folder.with_name("state")),
            "AUTOGEN_TEAM_ALERTS_ENABLE": "false",
            "AUTOGEN_TEAM_MLFLOW_SNAPSHOT": "false",
            "LOGNAME": "ada",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": self.store,
            "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "3600",
        }

    def save(self, page: str, folder: str = ".") -> None:
        """Save the files that a page of the documentation asks its reader to save."""
        for name, text in SAVED.findall((ROOT / "docs" / page).read_text()):
            self.write(name, text, folder)

    def write(self, name: str, text: str, folder: str = ".") -> None:
        """Write a file."""
        path = self.folder / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def run(self, *words: str, **options: str) -> Console:
        """Run `autogen-team run WORDS...` to its end."""
        return self.wait_for(self.start("run", *words, **options))

    def team_run(self, *words: str, **options: str) -> Console:
        """Run `autogen-team run WORDS...` to its end, in the experiment of the team."""
        return self.run(*words, MLFLOW_EXPERIMENT_NAME=TEAM, **options)

    def start(self, *words: str, **options: str) -> subprocess.Popen[str]:
        """Start `autogen-team WORDS...`."""
        return self.python("-m", "autogen_team", *words, **options)

    def python(self, *words: str, folder: str = ".", **environment: str) -> subprocess.Popen[str]:
        """Start `python WORDS...` in a folder."""
        return forkserver.popen(
            words,
            cwd=self.folder / folder,
            env={**self._environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ids_of_runs(self, name: str) -> list[str]:
        """Return the ids of the team's runs of this name."""
        import mlflow

        client = mlflow.MlflowClient(self.store)
        experiment = client.get_experiment_by_name(TEAM)
        runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'") if experiment else []
        return [run.info.run_id for run in runs]

    def wait_for(self, process: subprocess.Popen[str]) -> Console:
        """Wait until a process has ended, and return its output."""
        text, _ = process.communicate(timeout=5 * PATIENCE)
        return Console(process.returncode, text)


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Person:
    """Return a user with a new folder; skip the tests if there is no browser."""
    pytest.importorskip("playwright", reason="the browser is led by playwright, which is for Linux")
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed: make system-deps")
    folder = tmp_path_factory.mktemp("person") / "work"
    folder.mkdir()
    shutil.copy(migrated_database, folder / "mlflow.db")
    return Person(folder)


@pytest.fixture(scope="module")
def tutorial(person: Person) -> dict[str, Console]:
    """Run the jobs of the tutorial, and return the output of each by the name of its run."""
    person.save("tutorial.md")
    return {
        "train.py": person.run("train.py"),
        "slow": person.run("--name", "slow", "--tag", "try=2", "train.py", "0.01"),
        "night.py": person.run("--description", "The training of every night.", "--tag", "fold=1", "night.py"),
        "from my own code": person.wait_for(person.python("own.py")),
    }


@pytest.fixture(scope="module")
def silent(person: Person) -> Iterator[subprocess.Popen[str]]:
    """Start a job that hangs, and is ended for it; other tests run meanwhile."""
    person.write("evaluate.py", EVALUATE)
    process = person.start("run", "--stall-after", "5s", "--stall-kill", "evaluate.py", MLFLOW_EXPERIMENT_NAME=TEAM)
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def diverging(person: Person) -> Iterator[subprocess.Popen[str]]:
    """Start a job that continues until a user stops it from the page of its run."""
    person.write("diverge.py", DIVERGES)
    options = {"MLFLOW_EXPERIMENT_NAME": TEAM, "AUTOGEN_TEAM_MLFLOW_HEARTBEAT": "1"}
    process = person.start("run", "diverge.py", **options)
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def traced(person: Person) -> Console:
    """Run the example of an agent, whose model is a stand-in."""
    return person.team_run("--name", "agent", str(ROOT / "examples" / "llm_traces.py"))


@pytest.fixture(scope="module")
def demo(person: Person) -> Console:
    """Run the example that `make demo` runs."""
    script = str(ROOT / "examples" / "train.py")
    return person.team_run("--name", "digits", script, MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="0.5")


@pytest.fixture(scope="module")
def resumed(person: Person) -> list[Console]:
    """Start a job that is killed halfway, and start it again."""
    person.write("nightly.py", NIGHTLY)
    return [person.team_run("--job", "nightly", "nightly.py") for _ in range(2)]


@pytest.fixture(scope="module")
def changed(person: Person) -> Console:
    """Run a script that has changed since its commit, as the page on what was run says."""
    person.save("how-to/what-was-run.md", "project")
    folder = person.folder / "project"
    repositories.make(folder, {"train.py": (folder / "train.py").read_text()})
    with (folder / "train.py").open("a") as script:
        script.write('mlflow.log_metric("accuracy", 0.9)\n')
    return person.team_run("train.py", folder="project", AUTOGEN_TEAM_MLFLOW_SNAPSHOT="true")


@pytest.fixture(scope="module")
def ui(person: Person, tutorial: dict[str, Console]) -> Iterator[dict[str, str]]:
    """Return the JSON that `autogen-team ui` prints; it serves until the last test of the module."""
    process = person.start("ui", "--json")
    try:
        line = next(line for line in process.stdout if line == "{\n")
        yield json.loads(line + "".join(iter(process.stdout.readline, "}\n")) + "}")
    finally:
        process.terminate()
        process.wait(PATIENCE)
        process.stdout.close()


@pytest.fixture(scope="module")
def page(ui: dict[str, str], tmp_path_factory: pytest.TempPathFactory):
    """Return a page of a browser that can reach only this machine; all tests share it, as a user would."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=shutil.which("chromium"),
            args=FLAGS,
            viewport={"width": WIDTH, "height": HEIGHT},
            device_scale_factor=SCALE if MAKES_PICTURES else 1,
            locale="en-GB",
            timezone_id="UTC",
            reduced_motion="reduce",
        )
        context.set_default_timeout(PATIENCE * 1000)
        context.set_default_navigation_timeout(PATIENCE * 1000)
        page = context.pages[0]
        _first_visit(page, ui["url"])
        yield page
        context.close()


def _first_visit(page, url: str) -> None:
    """Do what a user does at the first visit: close the assistant, choose model training, fold the sidebar."""
    page.goto(url)
    page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
    page.get_by_role("button", name="Model training").click()
    page.wait_for_function("(localStorage['mlflow.workflowType_v1'] || '').includes('machine_learning')")
    page.get_by_role("button", name="Toggle sidebar").click()


@pytest.fixture(scope="module")
def visit(page, ui, person):
    """Return a function that shows the page of a run, or one tab of it; the run is given by its console or its id."""
    import mlflow

    client = mlflow.MlflowClient(person.store)

    def go(run: Console | str, tab: str = "") -> None:
        info = client.get_run(run if isinstance(run, str) else run.run_id).info
        title = page.get_by_role("heading", name=info.run_name, exact=True)
        assert title.count() == 0, "the previous page has the same title: nothing would wait for this one"
        page.goto(f"{ui['url']}/#/experiments/{info.experiment_id}/runs/{info.run_id}{tab and '/'}{tab}")
        title.wait_for()

    return go


@pytest.fixture
def keep_picture(page, person):
    """Return a function that makes a picture of the documentation anew; it does nothing in other runs of the tests."""

    def keep(name: str, *, height: int, width: int = WIDTH, left: int | None = None) -> None:
        if not MAKES_PICTURES:
            return
        from PIL import Image

        page.evaluate(HIDE, [[str(person.folder), "~/work"], [sys.base_prefix, "/usr"], [str(ROOT), "~/autogen-team"]])
        path = ROOT / "docs" / "images" / f"{name}.png"
        begin = page.locator("main").bounding_box()["x"] if left is None else left
        clip = {"x": begin, "y": 0, "width": width - begin, "height": height}
        page.screenshot(path=path, animations="disabled", clip=clip)
        with Image.open(path) as image:
            image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)

    return keep


HIDE = """
places => {
  document.querySelector("[data-component-id*='assistant']")?.remove();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode())
    for (const [place, name] of places)
      texts.currentNode.data = texts.currentNode.data.replaceAll(place, name);
}
"""
"""Replaces paths of this machine by those of a user, and removes the button of MLflow's assistant."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Keep a picture of the page that a failed test saw, in `artifacts/browser`."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if report.failed and report.when == "call" and page is not None:
        page.screenshot(path=ROOT / "artifacts" / "browser" / f"{item.name}.png")
    return report
