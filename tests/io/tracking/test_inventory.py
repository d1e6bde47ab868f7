"""State of a journal and of the process that wrote it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys

import pytest

from autogen_team._ship import recovery
from autogen_team._spool import index, journal, reader, records


def test_a_journal_of_a_newer_format_is_reported_and_kept(tmp_path, store_uri, monkeypatch):
    """A journal in a newer format is reported, and neither recovered nor removed."""
    newer_version = records.VERSION + 1
    monkeypatch.setattr(records, "VERSION", newer_version)
    monkeypatch.setattr(journal, "started_at", lambda _: 1.0)
    written = journal.Journal(tmp_path / "state", uri=store_uri)
    written.append('"op":"open","who":"nobody knows"}')
    folder = written.folder
    written.after_fork()  # releases the lock, as the death of the process would
    monkeypatch.undo()

    (found,) = index.find(tmp_path / "state")
    assert (found.state, found.uri, found.open_runs, found.waiting) == ("dead", store_uri, (), 0)
    newer = f"its format {newer_version} is from a newer version of autogen-team"
    assert found.evidence.endswith(newer)
    assert recovery.recover(found, store_uri, store_uri, tmp_path / "state").problem == newer
    assert folder.exists()


@pytest.mark.parametrize("body", ['"op":"journal"}', '"op":"journal","version":1,"host":"x","pid":"7"}'])
def test_a_journal_without_a_header_is_ignored(tmp_path, body):
    """A journal without a complete header is ignored."""
    folder = journal.folder_of(tmp_path) / "x-7-0"
    folder.mkdir(parents=True)
    (folder / "000001.jsonl").write_bytes(records.line(1, body))

    assert reader.header(folder) is None
    assert index.find(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "state_of_it", "evidence"),
    [
        ({"boot": "another"}, "dead", "the machine has rebooted"),
        ({"host": "elsewhere.example", "boot": "another"}, "elsewhere", "it was written on elsewhere.example"),
        ({"host": "pod-1"}, "dead", "on pod-1 holds no lock"),
        ({"started": 1.0}, "dead", "is a different process now"),
    ],
    ids=["another boot", "another machine", "a container of this machine", "another process"],
)
def test_the_state_of_the_process_of_a_journal(tmp_path, changed, state_of_it, evidence, monkeypatch):
    """The state of a journal's process depends on boot id, host and start time, not on the process id alone."""
    facts = {"boot": journal.boot_id(), "host": socket.gethostname(), "started": 7.0, **changed}
    monkeypatch.setattr(journal, "boot_id", lambda: facts["boot"])
    monkeypatch.setattr(journal, "started_at", lambda _: facts["started"])
    monkeypatch.setattr(journal.socket, "gethostname", lambda: facts["host"])
    written = journal.Journal(tmp_path / "state", uri="x")
    written.append('"op":"params","run":"r","values":{}}')
    folder = written.folder
    written.after_fork()  # releases the lock, as the death of the process would
    monkeypatch.undo()

    found = index.look(folder)
    assert found.state == state_of_it
    assert evidence in found.evidence
    assert index.look(folder, ["elsewhere.example"]).state == "dead"


def test_a_process_considers_itself_alive(tmp_path):
    """A process that inspects its own journal is alive, and keeps its lock."""
    written = journal.Journal(tmp_path / "state", uri="x")
    written.append('"op":"params","run":"r","values":{}}')

    assert index.look(written.folder).evidence == f"process {os.getpid()} runs"
    code = "from autogen_team._spool import journal, index; from pathlib import Path; import os\n"
    code += f"print(journal.take_lock(Path({str(written.folder)!r})))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "None\n"
    written.close()


def test_without_file_locks_a_journal_can_be_taken_over(tmp_path, monkeypatch):
    """On a file system without locks, such as Lustre without `-o flock`, a journal can still be taken over."""
    (tmp_path / "lock").touch()

    def lockf(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "lockf", lockf)

    assert not journal.is_locked(tmp_path)
    lock = journal.take_over(tmp_path)
    assert lock is not None
    journal.give_back(tmp_path, lock)
