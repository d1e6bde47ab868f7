"""Report the silence of a job: its stacks as an artifact of the run, and an alert.

The agent starts a process for this, because C code may block the interpreter of the job.
"""

from __future__ import annotations

import os
import re
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import psutil

from autogen_team._process import activity, identity
from autogen_team._process.deadline import within
from autogen_team._process.durations import duration
from autogen_team._process.folders import open_private, private_folder
from autogen_team._services.alerts import AlertsService
from autogen_team._ship import watched
from autogen_team._ship.error_text import with_kind
from autogen_team._ship.signs import SILENT_TAG
from autogen_team._ship.watched import Facts

ARTIFACTS = "stalls"
"""Artifact folder of a run's stacks."""
_PATIENCE = 10.0
"""Maximum seconds for a process to write its stacks."""
_UPLOAD = 60.0
"""Seconds that the upload may take."""
_OTHERS = 75.0
"""Seconds in which the agents of other machines must have kept the stacks of their ranks: two heartbeats and a bit."""
_POLL, _LOOK = 0.05, 1.0
_PROCESS = re.compile(r"^# ", re.MULTILINE)
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<path>[^"]*)", line (?P<line>\d+) in (?P<name>.*)$', re.MULTILINE)


def report(
    kind: Literal["silent", "moving", "elsewhere"],
    owner: Mapping[str, Any],
    lasted: float,
    number: int,
    folders: list[str],
    state: str,
) -> None:
    """Report on behalf of a job, in whose environment this process runs.

    `owner` are the facts of the process that has opened the run; `folders` are those of all that work for it;
    `state` is the state folder. If the agent of rank 0 on another machine has found the run silent (`elsewhere`), only
    the stacks of the ranks here are kept.
    """
    facts = Facts(**owner)
    with suppress(OSError):
        os.chdir(facts.folder)
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if kind == "elsewhere":
        found = list(_stacks(folders))
        if found:
            _keep(Path(state), facts, _text(found), number, uri)
        return
    tell(kind, facts, lasted, number, folders, Path(state), AlertsService(), uri, asks_others=True)


def tell(
    kind: Literal["silent", "moving"],
    facts: Facts,
    lasted: float,
    number: int,
    folders: list[str],
    state: Path,
    alerts: AlertsService,
    uri: str,
    *,
    asks_others: bool = False,
) -> None:
    """Keep the stacks with the run, and send the alert; with `asks_others`, wait for the ranks of other machines."""
    name = facts.name or facts.run
    if kind == "moving":
        _alert(alerts, f"{name}: moves again", f"after {duration(lasted)} of silence, run {facts.run}", "success")
        return
    found = list(_stacks(folders))  # first, before the silence can end
    lines = [f"nothing was logged or printed for {duration(lasted)}, run {facts.run}"]
    if found:
        lines += [f"{who}: {_where(stacks)}" for who, stacks in found]
        lines.append(f"stacks of all threads: {_keep(state, facts, _text(found), number, uri)}")
    else:
        lines.append("no process of the job has loaded the module that writes its stacks")
    missing = facts.world - sum(who.startswith("rank ") for who, _ in found)
    if asks_others and facts.world and missing > 0:
        lines[1:1] = _elsewhere(facts, number, uri, missing)
    _alert(alerts, f"{name}: silent", "\n".join(lines), "warning")


def _elsewhere(facts: Facts, number: int, uri: str, missing: int) -> list[str]:
    """Return where the ranks of other machines wait, whose agents keep their stacks once they see a tag of the run."""
    from autogen_team._redact import mask
    from autogen_team._ship import mlflow_backend

    lines = []
    try:
        client = mlflow_backend.client(uri, uri)
        known = {one.path for one in client.list_artifacts(facts.run, ARTIFACTS)}
        client.set_tag(facts.run, SILENT_TAG, str(number))
        give_up = time.monotonic() + _OTHERS
        while missing > 0 and time.monotonic() < give_up:
            time.sleep(_LOOK)
            for one in client.list_artifacts(facts.run, ARTIFACTS):
                if one.path in known or not one.path.endswith(f"-{number}.txt"):
                    continue
                known.add(one.path)
                host = Path(one.path).name.rsplit("-", 2)[0]
                with tempfile.TemporaryDirectory() as folder:
                    text = Path(client.download_artifacts(facts.run, one.path, folder)).read_text()
                for who, _, stacks in (part.partition("\n") for part in _PROCESS.split(text)[1:]):
                    lines.append(f"{who} on {host}: {_where(stacks)}")
                    missing -= who.startswith("rank ")
        client.delete_tag(facts.run, SILENT_TAG)
    except Exception as error:
        lines.append(f"the ranks of other machines cannot be asked: {mask(with_kind(error))}")
    return [*lines, f"{missing} ranks did not report where they wait"] if missing > 0 else lines


def _text(found: list[tuple[str, str]]) -> str:
    return "\n".join(f"# {who}\n\n{stacks or 'It wrote no stacks.'}\n" for who, stacks in found)


def _stacks(folders: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each process with its stacks, the job itself first; the text is empty if the process writes none."""
    processes = []
    for folder in map(Path, folders):
        with suppress(OSError, ValueError, TypeError):
            facts = watched.facts_of(folder)
            if facts.signal:
                processes.append((facts, folder))
    known = {facts.pid for facts, _ in processes}
    for facts, folder in sorted(processes, key=lambda one: (len(one[0].who), one[0].who, one[0].pid)):
        who = f"{facts.who}, process {facts.pid}" if facts.who else f"process {facts.pid}"
        yield who, _told_by(facts.pid, facts.signal, folder / watched.STACKS)
        for child in _children(facts.pid):
            # A forked child has inherited the handler and the file.
            if child not in known and (told := _told_by(child, facts.signal, folder / watched.STACKS)):
                known.add(child)
                yield f"process {child}, child of {facts.pid}", told


def _children(pid: int) -> list[int]:
    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def _told_by(pid: int, number: int, path: Path) -> str:
    """Send the signal, and return the text that the process writes to the file; empty if it does not handle it."""
    if not watched.catches(pid, number):
        return ""
    with suppress(OSError):
        before = path.stat().st_size
        blocked = _blocking(pid, number)
        os.kill(pid, number)
        give_up = time.monotonic() + _PATIENCE
        size = before
        while time.monotonic() < give_up:
            time.sleep(_POLL)
            last, size = size, path.stat().st_size
            # The signal is blocked in the thread that writes.
            if before < size == last and not _blocking(pid, number) - blocked:
                break
        with path.open("rb") as file:
            file.seek(before)
            return file.read().decode("utf-8", "replace")
    return ""


def _blocking(pid: int, number: int) -> set[str]:
    """Return the threads of a process that block a signal."""
    found = set()
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        with suppress(OSError, StopIteration, ValueError, IndexError):
            line = next(line for line in path.read_text().splitlines() if line.startswith("SigBlk:"))
            if int(line.split()[1], 16) >> (number - 1) & 1:
                found.add(path.parent.name)
    return found


def _where(stacks: str) -> str:
    r"""Return where the thread that received the signal waits: the main thread, unless it blocks the signal.

    The most useful frame is the innermost one outside Python and installed packages.

    >>> _where('Current thread 0x01 (most recent call first):\n  File "/job/train.py", line 3 in step\n')
    'train.py, line 3 in step'
    """
    parts = _THREAD.split(stacks)
    current = stacks.find("Current thread")
    part = stacks[current:].split("\n\n", maxsplit=1)[0] if current >= 0 else parts[-1]
    frames = list(_FRAME.finditer(part))
    if not frames:
        return "it wrote no stacks"
    library = sysconfig.get_paths()["stdlib"]
    is_own = [
        not frame["path"].startswith((library, "<frozen")) and "site-packages" not in frame["path"] for frame in frames
    ]
    frame = next(compress(frames, is_own), frames[0])
    return f"{Path(frame['path']).name}, line {frame['line']} in {frame['name']}"


def _keep(state: Path, facts: Facts, text: str, number: int, uri: str) -> str:
    """Keep the stacks with the run, or else in the state folder; return where they are."""
    from autogen_team._redact import mask

    name = f"{identity.process_name(facts.job)}-{number}.txt"
    path = private_folder(state / ARTIFACTS / facts.run) / name
    with open_private(path, "wb") as file:
        file.write(mask(text).encode("utf-8", "backslashreplace"))
    try:
        with activity.unnoticed():  # if this is the job itself
            within(_UPLOAD, partial(_upload, uri, facts.run, path), name="autogen_team-stalls")
    except Exception as error:
        return f"{path} ({mask(with_kind(error))})"
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()
    return f"{ARTIFACTS}/{name}"


def _upload(uri: str, run_id: str, path: Path) -> None:
    from autogen_team._ship import mlflow_backend

    mlflow_backend.client(uri, uri).log_artifact(run_id, str(path), ARTIFACTS)


def _alert(service: AlertsService, title: str, message: str, level: Literal["success", "warning"]) -> None:
    if service.enable:
        service.deliver_now(title, message, level=level)
