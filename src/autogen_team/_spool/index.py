"""List the journals in a state folder, their processes and waiting entries; does not import MLflow.

A process is alive if its id and start time are those in the journal, or if it holds the lock of the journal. The same
boot id means the same machine, whatever host name a container has. In a state folder shared by machines, only the
machine of a journal judges its process, unless the caller says that the machine is gone. A process that recovers a
journal holds its lock too, and has written its own id and host into it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from autogen_team._process import durations, sizes
from autogen_team._spool import files, journal, reader
from autogen_team._spool.records import NOTES, VERSION, Entry

State: TypeAlias = Literal["alive", "dead", "recovering", "elsewhere"]

_BEGINNING = 60.0
"""Seconds after which a process that created a journal has either written to it or died."""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that a process had open."""

    run_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Found:
    """A journal and the state of the process that wrote it."""

    folder: Path
    host: str
    pid: int
    state: State
    evidence: str
    """The evidence for the state, in words."""
    uri: str
    """URI of the store, without its password."""
    open_runs: tuple[OpenRun, ...]
    run_ids: tuple[str, ...]
    """Ids of the runs of the waiting entries."""
    waiting: int
    """Number of entries that the store has not accepted."""
    last_write: float
    """Seconds since 1970."""
    files: int = 0
    """Number of calls whose files wait for their upload."""
    file_bytes: int = 0
    """Bytes of these files."""
    upload_rate: float | None = None
    """Last upload rate in bytes per second; None before the first upload."""

    @property
    def waits(self) -> str:
        """Waiting entries and uploads, in words, with the upload time at the last rate."""
        found = in_words(self.waiting, self.files, self.file_bytes)
        if self.file_bytes and self.upload_rate:
            found += f", {durations.duration(self.file_bytes / self.upload_rate)} at {sizes.show(self.upload_rate)}/s"
        return found


def in_words(entries: int, uploads: int, size: int) -> str:
    """Return a text for the waiting entries and uploads; `size` is the bytes of all uploads.

    >>> in_words(3, 0, 0), in_words(1, 2, 1_200_000), in_words(0, 1, 10)
    ('3 entries', '1 entry and 2 uploads (1.2 MB)', '1 upload (10 B)')
    """
    parts = [f"{entries} {'entry' if entries == 1 else 'entries'}"] if entries or not uploads else []
    parts += [f"{uploads} upload{'s' if uploads > 1 else ''} ({sizes.show(size)})"] if uploads else []
    return " and ".join(parts)


def find(state: Path, hosts: Collection[str] = (), *, held: bool = True) -> list[Found]:
    """Return the journals of all processes, ordered by last write; journals of `hosts` are judged here too.

    With `held=False`, journals locked by another process are skipped without being read. Otherwise each of 200 starting
    workers, which look for dead processes, would read the journals of all others.
    """
    folders = [path for path in journal.folder_of(state).glob("*") if path.is_dir() and (held or not _is_held(path))]
    found = [look(folder, hosts) for folder in folders]
    return sorted((one for one in found if one is not None), key=lambda one: one.last_write)


def _is_held(folder: Path) -> bool:
    """Return whether another process is known to hold the lock of a journal."""
    header = reader.header(folder)
    if header is None or header["pid"] == os.getpid():  # a process that tests its own lock loses it
        return False
    return journal.is_locked(folder)


def sweep(state: Path) -> None:
    """Remove empty journals, left by processes that were killed before they wrote the first entry."""
    for folder in journal.folder_of(state).glob("*"):
        with suppress(OSError):
            is_new = time.time() - folder.stat().st_mtime < _BEGINNING
            if is_new or any(map(_is_begun, folder.glob("*.jsonl"))):
                continue
            lock = journal.take_over(folder)
            if lock is not None:
                journal.remove(folder)
                journal.give_back(folder, lock)


def _is_begun(segment: Path) -> bool:
    with segment.open("rb") as file:
        return file.read(1) not in (b"", b"\0")  # a segment is reserved as NUL bytes, and its header is the first line


def look(folder: Path, hosts: Collection[str] = ()) -> Found | None:
    """Return the description of a journal; None if it has no header or has been removed."""
    with suppress(FileNotFoundError):  # its process, or a process that recovers it, may be removing it
        return _look(folder, hosts)
    return None


def _look(folder: Path, hosts: Collection[str]) -> Found | None:
    entries = reader.read(folder)
    header = next(filter(reader.is_header, entries), None)
    if header is None:
        return None
    is_newer = header["version"] > VERSION
    if is_newer:  # only the header fields about process and store are the same in every format
        entries = []
    acked = reader.acked(folder)
    waiting = [entry for entry in entries if entry["n"] > acked and entry["op"] not in NOTES]
    uploads = files.waiting(folder)
    is_closed = any(entry["op"] == "closed" for entry in entries)
    state, evidence = _state(folder, header, hosts, is_closed=is_closed)
    if is_newer:
        evidence += f"; its format {header['version']} is from a newer version of autogen-team"
    return Found(
        folder=folder,
        host=header["host"],
        pid=header["pid"],
        state=state,
        evidence=evidence,
        uri=header["uri"],
        open_runs=tuple(OpenRun(run_id, facts.get("name") or "") for run_id, facts in open_runs(entries).items()),
        run_ids=tuple(dict.fromkeys(entry["run"] for entry in waiting if "run" in entry)),
        waiting=len(waiting),
        last_write=_last_write(folder, entries),
        files=len(uploads),
        file_bytes=sum(one.size for one in uploads),
        upload_rate=files.rate(folder),
    )


def _state(folder: Path, header: Entry, hosts: Collection[str], *, is_closed: bool) -> tuple[State, str]:
    pid = header["pid"]
    is_same_boot = header["boot"] == journal.boot_id()
    is_here = header["host"] == socket.gethostname()
    if not is_here and not (header["boot"] and is_same_boot) and header["host"] not in hosts:
        return "elsewhere", f"it was written on {header['host']}"
    if is_here and header["boot"] and not is_same_boot:
        return "dead", "the machine has rebooted since"
    started = journal.started_at(pid) if is_here else None
    if not is_closed and started is not None and started == header.get("started"):
        return "alive", f"process {pid} runs"
    if journal.is_locked(folder):
        recoverer = journal.recoverer(folder)
        if recoverer is None:
            return "alive", "its lock is held"
        return "recovering", "process {} on {} is recovering it".format(*recoverer)
    if is_closed:
        return "dead", f"process {pid} ended normally with undelivered entries"
    if not is_here:
        return "dead", f"process {pid} on {header['host']} holds no lock"
    if started is None:
        return "dead", f"there is no process {pid}"
    return "dead", f"process id {pid} belongs to a different process now"


def open_runs(entries: list[Entry]) -> dict[str, Entry]:
    """Return the recorded facts about each run that was opened and not closed, by run id.

    The result is empty if the process ended normally: runs that it left open stay open, as in plain MLflow.
    """
    found: dict[str, Entry] = {}
    if any(entry["op"] == "closed" for entry in entries):
        return found
    for entry in entries:
        if entry["op"] == "journal":
            found |= {run["run"]: run for run in entry["open"]}
        elif entry["op"] == "open":
            found[entry["run"]] = entry
        elif entry["op"] == "info" and entry.get("status") in ("FINISHED", "FAILED", "KILLED"):
            found.pop(entry["run"], None)
    return found


def _last_write(folder: Path, entries: list[Entry]) -> float:
    times = [entry.get("t") or entry.get("at") or entry.get("end") or 0 for entry in entries]
    writes = [path.stat().st_mtime for path in folder.glob("*.jsonl")]
    latest = max([one / 1000 for one in times if isinstance(one, int)] + writes, default=0.0)
    return min(latest, time.time())  # a job may set any time for its metrics
