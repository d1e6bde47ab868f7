"""Upload a growing folder to a run: often at first, at little cost, completely at the end."""

from __future__ import annotations

import threading

import pytest

from autogen_team._logs import runlog, upload
from autogen_team._process import run_events


class Writer:
    """A writer of numbered files."""

    stem = "host-1"

    def __init__(self, folder):
        self.folder = folder
        self.number = 1

    @property
    def path(self):
        """The path of the current file."""
        return self.folder / f"{self.stem}_{self.number:04d}.log"

    def begin_segment(self):
        """Begin the next file."""
        self.number += 1

    def write(self, size):
        """Append that many bytes."""
        with self.path.open("ab") as file:
            file.write(b"x" * size)


@pytest.fixture
def writer(tmp_path):
    """Return a writer with a folder."""
    (tmp_path / "run").mkdir()
    return Writer(tmp_path / "run")


@pytest.fixture
def bring(writer):
    """Return an upload that the test drives step by step; it records uploaded files."""
    brought = {}
    total = []

    def attach(path):
        content = path.read_bytes()
        brought[path.name] = len(content)
        total.append(len(content))

    it = upload.Upload(writer.folder, attach, writer)
    it.brought, it.total = brought, total
    return it


def test_the_pause_grows_from_a_second_to_half_a_minute():
    """The pause follows Metaflow's curve."""
    pauses = [upload.pause(age) for age in range(0, 4000, 10)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 1.01
    assert 15 < upload.pause(900) < 17
    assert 30.9 < pauses[-1] <= 31
    assert upload.pause(10**9) == 31


def test_a_short_log_is_uploaded_whenever_it_has_grown(bring, writer):
    """A short log is uploaded only if it has grown."""
    for size in (10, 20, 20, 25):
        writer.write(size - sum(it.stat().st_size for it in writer.folder.glob("*")))
        bring._look(final=False)
    assert bring.total == [10, 20, 25]


def test_a_gigabyte_of_log_is_not_uploaded_twice(bring, writer, monkeypatch):
    """Scaled down by a thousand: at any growth rate, less than twice the length of the log is uploaded."""
    monkeypatch.setattr(upload, "SLACK", 8 * 2**10)
    monkeypatch.setattr(upload, "WORTH", 64)
    for pace in (10, 300, 5_000, 100, 40_000):
        for _ in range(100):
            writer.write(pace)
            bring._look(final=False)
    bring._look(final=True)
    length = sum(it.stat().st_size for it in writer.folder.glob("*"))
    assert length == 100 * (10 + 300 + 5_000 + 100 + 40_000)
    assert sum(bring.brought.values()) == length
    assert sum(bring.total) < 2 * length
    assert writer.number < 500


def test_files_of_other_processes_are_uploaded_when_they_have_doubled(bring, writer):
    """At the end they are uploaded completely."""
    other = writer.folder / "host-2.log"
    for size in (10, 15, 20, 39):
        other.write_bytes(b"x" * size)
        bring._look(final=False)
    assert bring.total == [10, 20]
    bring._look(final=True)
    assert bring.brought == {"host-2.log": 39}


def test_closed_files_are_uploaded_once(bring, writer):
    """The writer does not change them again."""
    writer.write(100)
    writer.begin_segment()
    writer.write(10)
    for _ in range(3):
        bring._look(final=False)
    assert bring.total == [100, 10]


def test_without_threads_the_log_stays_on_disk(bring, writer, monkeypatch):
    """At the interpreter's exit no thread can be started."""

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    writer.write(10)
    bring.start()
    assert not bring.finish(5)
    assert bring.total == []


def test_files_that_have_grown_meanwhile_are_not_removed(bring, writer):
    """A worker that outlives the run still writes its file."""
    writer.write(10)
    bring._look(final=True)
    writer.write(1)
    bring._clean_up()
    assert writer.path.stat().st_size == 11


def test_a_long_log_is_written_in_segments(tmp_path, monkeypatch):
    """Each segment is uploaded once; the names of segments sort in order."""
    monkeypatch.setattr(runlog, "SEGMENT", 100)

    def attach(path, folder):
        target = tmp_path / folder / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())

    run = run_events.Run("1", "train", "digits", None, attach)
    log = runlog.RunLog(run, tmp_path / "state" / "1", lambda *_: b"")
    for number in range(30):
        log.write(b"line %02d\n" % number)
    log.finish(30)
    names = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert len(names) == 3
    assert names == [f"{log.stem}.log", f"{log.stem}_0002.log", f"{log.stem}_0003.log"]
    content = b"".join((tmp_path / "logs" / name).read_bytes() for name in names)
    assert content.splitlines() == [b"line %02d" % number for number in range(30)]
