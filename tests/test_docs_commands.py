"""The commands of the documentation do what it says: each page is executed in its own folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from testkit import forkserver, repositories

pytestmark = pytest.mark.usefixtures("forked_children")

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [
    "../README.md",
    "how-to/laptop.md",
    "how-to/ci.md",
    "how-to/cluster.md",
    "tutorial.md",
    "logging.md",
    "run.md",
    "tracking.md",
    "how-to/offline.md",
    "how-to/recover.md",
    "how-to/what-was-run.md",
    "reference/cli.md",
]
JOB = "import mlflow\nwith mlflow.start_run():\n    mlflow.log_metric('loss', 0.5)\n"
FILES = {"train.py": JOB, "package/__init__.py": "", "package/train.py": JOB, "pipeline.sh": "python train.py\n"}
"""Files that a page expects, unless it tells the reader to save one of that name."""
SERVER = "http://localhost:5000"
FOLDER_STORE = """
import mlflow
client = mlflow.MlflowClient("mlruns")
client.set_terminated(client.create_run("0").info.run_id)
"""
BEFORE = f"""\
MLFLOW_ALLOW_FILE_STORE=true python -c {shlex.quote(FOLDER_STORE)}
git init --quiet && git add train.py && git commit --quiet --message first
export MLFLOW_TRACKING_URI={SERVER}
autogen-team run --mode offline train.py || exit 97
"""
"""State that pages about several commands expect: an old store, a server, and an offline run for it."""
HAVE_A_PAST = {"tracking.md", "reference/cli.md"}
KEEP_CODE = {"how-to/what-was-run.md", "reference/cli.md"}
"""Pages whose commands read the snapshot of a run."""
LOOKS_AT_PROCESSES = {"how-to/recover.md"}
"""Pages whose commands find processes by name, which must be new interpreters."""
BLOCK = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w*)\n(?P<body>.*?)```\n", re.DOTALL)
FILE = re.compile(r"[Ss]ave this as `([\w.]+)`")
SERVES = """\
{command} > served 2>&1 &
until grep -q http:// served; do kill -0 $! || exit 98; sleep 0.1; done
kill -INT $! 2>/dev/null
wait $!
"""


def _commands(body: str) -> Iterator[tuple[str, int]]:
    """Yield each command with its documented exit status: that of `echo $?`, or 0."""
    lines = [line for line in body.splitlines() if line]
    commands = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    for number, following in pairwise([*commands, len(lines)]):
        command = lines[number].removeprefix("$ ").partition("  #")[0]
        if command == "echo $?":
            continue
        asks = lines[following : following + 1] == ["$ echo $?"]
        yield command, int(lines[following + 1]) if asks else 0


def _answers(body: str) -> list[str]:
    return [line for line in body.splitlines() if line and not line.startswith("$ ")]


def _without_what_varies(text: str) -> str:
    """Return the text without numbers, ids and paths."""
    text = re.sub(r"\S+/(autogen-team )", r"\1", text)  # printed with its path if a shell would find another one
    return re.sub(r"/\S+", "/", re.sub(r"\d+(\.\d+)*(e-\d+)?", "0", re.sub(r"\b[0-9a-f]{32}\b", "ID", text)))


def _script(page: str) -> tuple[str, list[str]]:
    """Return the page as a bash script, and the lines that it must print."""
    lines, answers = ["set -m"], []  # -m, so that Ctrl-C reaches a background job
    for block in BLOCK.finditer(page):
        if block["language"] == "py":
            name = FILE.findall(page[: block.start("language")])[-1]
            lines.append(f"cat > {name} <<'END_OF_FILE'\n{block['body']}END_OF_FILE")
        elif block["language"] == "console" and "not run by the tests" not in block["before"]:
            answers += _answers(block["body"])
            for command, status in _commands(block["body"]):
                serves = command.startswith("autogen-team ui")
                expected = "(130|0)" if serves else status  # for a server it prints the links and exits
                lines.append(SERVES.format(command=command) if serves else command)
                lines.append(
                    f"found=$?; [[ $found =~ ^{expected}$ ]] || {{ echo {shlex.quote(command)}: $found; exit 99; }}"
                )
    return "\n".join(lines), answers


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_behave_as_documented(name, request, tmp_path):
    """Each command has the documented exit status and output, except for numbers and paths."""
    commands = tmp_path / "bin"
    commands.mkdir()
    if name in LOOKS_AT_PROCESSES:
        commands = Path(sys.executable).parent
    else:
        forkserver.shell_commands(commands)
    script, answers = _script((DOCS / name).read_text())
    if name in HAVE_A_PAST:
        script = BEFORE + script
    if SERVER in script:
        script = script.replace(SERVER, request.getfixturevalue("mlflow_server"))
    for path, text in FILES.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text)
    environment = {
        **os.environ,
        **repositories.PLAIN,
        "AUTOGEN_TEAM_MLFLOW_SNAPSHOT": str(name in KEEP_CODE).lower(),
        "BROWSER": "true",
        "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AUTOGEN_TEAM_ALERTS_ENABLE": "false",
    }
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    printed = _without_what_varies(done.stdout)
    assert [line for line in answers if _without_what_varies(line) not in printed and not line.isdigit()] == [], printed


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.stem)
def test_every_file_of_a_page_is_run(path):
    """A file of a page is a `py` block, not a `python` block, and a command of the page runs it."""
    for block in BLOCK.finditer(path.read_text()):
        if block["language"] == "py":
            assert str(path.relative_to(DOCS)) in PAGES
            assert FILE.findall(path.read_text()[: block.start("language")])[-1] in "".join(
                other["body"] for other in BLOCK.finditer(path.read_text()) if other["language"] == "console"
            )
