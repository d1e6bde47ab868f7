"""Written entries are in the journal, whatever happens to the process, the disk or the files later."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import threading
import time
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autogen_team._spool import journal, reader, records
from autogen_team._spool.journal import Journal, JournalError
from autogen_team._spool.wakeup import Wakeup

pytestmark = pytest.mark.usefixtures("forked_children")

URI = "sqlite:////somewhere/mlflow.db"
RUN = "0123456789abcdef0123456789abcdef"


def metric(number: int, value: float = 0.5) -> str:
    """Return the body of a metric entry."""
    return records.metrics_body(RUN, 1_700_000_000_000 + number, number, records.pair(records.quote("loss"), value))


@pytest.fixture
def written(tmp_path):
    """Return a journal that is closed after the test."""
    found = Journal(tmp_path / "state", uri=URI)
    yield found
    found.close()


def steps(found: list[records.Entry]) -> list[int]:
    """Return the steps of the metrics among the entries."""
    return [entry["step"] for entry in found if entry["op"] == "metrics"]


def test_an_entry_is_on_disk_when_append_returns(written):
    """Another reader finds an entry as soon as `append` has returned, without a flush."""
    written.append(metric(1))

    assert steps(reader.read(written.folder)) == [1]


def test_each_line_is_json_with_a_checksum(written):
    """Each line of a segment is JSON with its own CRC-32, so that any JSON parser can read and check it."""
    written.append(metric(1))

    for line in written.path(1).read_bytes().rstrip(b"\0").splitlines():
        entry = json.loads(line)
        assert int(entry["crc"], 16) == crc32(line[len('{"crc":"01234567",') :])


def test_a_segment_begins_with_a_header(written):
    """A segment begins with a header: format version, process, boot id, start time and store."""
    written.append(metric(1))

    header = reader.read(written.folder)[0]
    assert (header["op"], header["version"], header["pid"], header["uri"]) == ("journal", 2, os.getpid(), URI)
    assert header["boot"] == journal.boot_id()
    assert header["started"] == journal.started_at(os.getpid())


def test_folder_and_files_are_for_their_owner_only(written):
    """Only the owner can read the folder of a journal and its files."""
    written.append(metric(1))

    assert written.folder.parent.stat().st_mode & 0o777 == 0o700
    assert written.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in written.folder.iterdir()} == {0o600}


def test_nothing_is_created_before_the_first_entry(tmp_path, written):
    """A journal creates no folder before its first entry."""
    assert not (tmp_path / "state").exists()


def test_segments_have_a_size(written, monkeypatch):
    """A long journal is split into segments of limited size, whose entries are read in order."""
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    for number in range(500):
        written.append(metric(number))

    sizes = [path.stat().st_size for path in written.folder.glob("*.jsonl")]
    assert len(sizes) > 10
    assert max(sizes) <= 4096
    assert steps(reader.read(written.folder)) == list(range(500))


def test_an_entry_longer_than_a_segment_is_whole(written, monkeypatch):
    """An entry longer than a segment, such as a dataset's profile, is written and read as a whole."""
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    written.append(records.body("params", run=RUN, values={"long": "x" * 100_000}))
    written.append(metric(1))

    found = reader.read(written.folder)
    assert [len(entry["values"]["long"]) for entry in found if entry["op"] == "params"] == [100_000]
    assert steps(found) == [1]


def test_segments_are_removed_once_all_entries_are_acknowledged(written, monkeypatch):
    """A segment is removed once all its entries are acknowledged, and not before."""
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    numbers = [written.append(metric(number)) for number in range(100)]
    written.ack(numbers[49])

    assert reader.acked(written.folder) == numbers[49]
    assert set(range(50, 100)) <= set(steps(reader.read(written.folder)))
    assert 0 not in steps(reader.read(written.folder))


@pytest.mark.parametrize("damage", [b"", b"\0" * 60, b'{"acked":100}\n', "torn", "higher"])
def test_a_damaged_acknowledgement_is_ignored(written, damage):
    """A damaged acknowledgement counts as none, so that all entries are delivered again."""
    written.ack(written.append(metric(1)))
    path = written.folder / "acked"
    whole = path.read_bytes()
    damage = {"torn": whole[:30], "higher": whole.replace(b'"n":2', b'"n":9')}.get(damage, damage)
    assert (reader.acked(written.folder), damage != whole) == (2, True)
    path.write_bytes(damage)

    assert reader.acked(written.folder) == 0


def test_a_new_segment_still_knows_which_runs_are_open(written, monkeypatch):
    """The header of a new segment lists the open runs, because older segments may be gone."""
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    written.run_opening("mark", "7")
    written.run_opened(RUN, mark=None, name="train", experiment="1")
    last = [written.append(metric(number)) for number in range(100)][-1]
    written.ack(last)

    (path,) = written.folder.glob("*.jsonl")
    header = records.parse(path.read_bytes().splitlines()[0])
    assert [(run["run"], run["name"]) for run in header["open"]] == [(RUN, "train")]
    assert header["opening"] == [{"mark": "mark", "experiment": "7"}]


def test_a_journal_without_undelivered_entries_is_removed(written):
    """Closing a journal whose entries are all acknowledged removes its folder."""
    written.ack(written.append(metric(1)))
    folder = written.folder

    assert written.close() is None
    assert not folder.exists()


def test_a_journal_with_undelivered_entries_stays(written):
    """Closing a journal with undelivered entries keeps its folder and cuts the unused end of its segment."""
    written.append(metric(1))

    folder = written.close()
    assert steps(reader.read(folder)) == [1]
    assert not (folder / "000001.jsonl").read_bytes().endswith(b"\0")


def test_threads_write_whole_lines_in_one_order(written, monkeypatch):
    """Entries of several threads are each written once, numbered in the order of the file."""
    monkeypatch.setattr(journal, "SEGMENT", 16_384)
    threads = [
        threading.Thread(target=lambda of: [written.append(metric(of * 1000 + n)) for n in range(500)], args=(of,))
        for of in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = reader.read(written.folder)
    assert sorted(steps(found)) == sorted(of * 1000 + n for of in range(8) for n in range(500))
    assert [entry["n"] for entry in found] == list(range(1, len(found) + 1))


def test_a_signal_handler_can_write_during_a_write(written):
    """A signal handler may append while it interrupts an append; no entry is lost or mixed."""
    numbers = count(1_000_000)
    before = signal.signal(signal.SIGALRM, lambda *_: written.append(metric(next(numbers))))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for number in range(20_000):
            written.append(metric(number))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    found = steps(reader.read(written.folder))
    assert [step for step in found if step < 1_000_000] == list(range(20_000))
    # A handler may be interrupted by the next one before it writes.
    assert sorted(step for step in found if step >= 1_000_000) == list(range(1_000_000, next(numbers)))


def test_a_forked_child_has_its_own_journal(written):
    """A forked child writes to a journal in another folder than its parent's."""
    written.append(metric(1))
    receiving, writer = os.pipe()
    if os.fork() == 0:
        written.after_fork()
        written.append(metric(2))
        os.write(writer, str(written.folder).encode())
        os._exit(0)
    os.wait()
    child = Path(os.read(receiving, 1000).decode())
    os.close(receiving)
    os.close(writer)

    assert child != written.folder
    assert steps(reader.read(child)) == [2]
    assert steps(reader.read(written.folder)) == [1]


def test_entries_of_a_killed_process_are_in_its_journal(tmp_path, start_python):
    """All entries that a process acknowledged before SIGKILL are in its journal."""
    code = (
        "import itertools, sys; from pathlib import Path\n"
        "from autogen_team._spool import records; from autogen_team._spool.journal import Journal\n"
        f"found = Journal(Path({str(tmp_path / 'state')!r}), uri='x')\n"
        "for n in itertools.count():\n"
        f"    found.append(records.metrics_body({RUN!r}, 1, n, '\"loss\":0.5'))\n"
        "    if n % 1000 == 999: print(n, flush=True)\n"
    )
    process = start_python("-c", code)
    process.wait_for("29999")
    process.send(signal.SIGKILL)
    _, out, _ = process.finish()

    (folder,) = journal.folder_of(tmp_path / "state").iterdir()
    found = steps(reader.read(folder))
    acknowledged = int((out.split() or ["29999"])[-1])
    assert found == list(range(len(found)))
    assert len(found) > acknowledged


def test_a_full_disk_raises_an_error(written, monkeypatch):
    """A full disk raises `JournalError`, because the space of a segment is allocated before it is mapped."""
    calls = []

    def full(*_):
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(JournalError, match="No space left"):
        written.append(metric(1))
    with pytest.raises(JournalError):
        written.append(metric(2))

    assert len(calls) == 1  # the second append came too soon to try the disk again


def test_writing_continues_when_there_is_space_again(written, monkeypatch):
    """A journal that failed on a full disk is written again once there is space."""
    monkeypatch.setattr(journal, "_RETRY", 0.0)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(JournalError):
            written.append(metric(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    written.append(metric(2))

    assert steps(reader.read(written.folder)) == [2]


def test_a_file_system_that_cannot_reserve_space_gets_zeros(written, monkeypatch):
    """A file system without `fallocate` gets segments that are filled with zeros."""

    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    written.append(metric(1))

    assert steps(reader.read(written.folder)) == [1]


def test_a_short_write_is_a_full_disk(written, monkeypatch):
    """Without `fallocate`, a short write of zeros raises `JournalError`, as a full disk does."""

    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    write = os.write
    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1000]))
    with pytest.raises(JournalError, match="No space left"):
        written.append(metric(1))


def test_a_segment_that_cannot_be_created_leaves_nothing_behind(written, monkeypatch):
    """A segment that cannot be begun leaves neither descriptors nor files behind."""
    monkeypatch.setattr(journal, "_RETRY", 0.0)
    before = len(list(Path("/dev/fd").iterdir()))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for number in range(3):
            with pytest.raises(JournalError):
                written.append(metric(number))
    assert len(list(Path("/dev/fd").iterdir())) == before
    assert list(written._parent.iterdir()) == []
    written.append(metric(3))

    assert steps(reader.read(written.folder)) == [3]


def test_two_threads_do_not_recover_the_same_journal(tmp_path, run_python):
    """Only one thread of a process can take over a journal, and other processes find it locked."""
    folder = tmp_path / "journals" / "host-1-x"
    folder.mkdir(parents=True)
    lock = journal.take_over(folder)

    assert journal.take_over(folder) is None
    assert journal.is_locked(folder)
    code = (
        "from pathlib import Path; from autogen_team._spool import journal\n"
        f"print(journal.take_lock(Path({str(folder)!r})))"
    )
    assert run_python("-c", code)[1] == "None\n"
    journal.give_back(folder, lock)
    assert not journal.is_locked(folder)
    journal.give_back(folder, journal.take_over(folder))


def test_a_signal_handler_can_set_a_wakeup_during_a_call():
    """A signal handler may set a `Wakeup` whose call it interrupts; a `threading.Event` would deadlock."""
    wakeup = Wakeup()
    calls = count()
    before = signal.signal(signal.SIGALRM, lambda *_: (next(calls), wakeup.set()))
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        while next(calls) < 500_000 and (found := next(calls)):
            wakeup.set()
            wakeup.wait(0.0 if found % 2 else None)
            wakeup.set()
            wakeup.clear()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    began = time.monotonic()
    wakeup.set()
    wakeup.wait(60.0)
    wakeup.wait(0.01)  # the first wait has used up the wake-up

    assert 0.01 <= time.monotonic() - began < 60.0


def test_the_lock_shows_that_the_writer_lives(tmp_path, written, run_python):
    """Another process cannot take the lock of a journal while its writer lives."""
    written.append(metric(1))
    code = (
        "import sys; from pathlib import Path; from autogen_team._spool import journal\n"
        f"print(journal.take_lock(Path({str(written.folder)!r})))"
    )

    assert run_python("-c", code)[1] == "None\n"


def test_a_follower_reads_while_the_writer_writes(written, monkeypatch):
    """A follower reads each entry once, across segments, also if acknowledged segments are removed behind it."""
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    follower = reader.Follower(lambda: written.folder)
    found: list[records.Entry] = []
    for number in range(1000):
        written.append(metric(number))
        if number % 7 == 0:
            found += follower.read(1000)
            written.ack(found[-1]["n"])
    while more := follower.read(1000):
        found += more

    assert steps(found) == list(range(1000))
    assert follower.number == written.number


def test_a_follower_is_behind_only_if_there_is_more(written):
    """Space reserved after the last entry does not count as entries, which would be shipped at once."""
    written.append(metric(1))
    follower = reader.Follower(lambda: written.folder)
    assert steps(follower.read(10_000)) == [1]
    assert not follower.is_behind

    for number in range(2, 300):
        written.append(metric(number))
    follower.read(10_000)
    assert follower.is_behind


def test_a_malformed_line_is_skipped(written):
    """A follower skips a malformed line, and delivers the entries after it."""
    written.append(metric(1))
    written.append('"op":"metrics","step":True}')
    written.append(metric(3))
    follower = reader.Follower(lambda: written.folder)

    assert steps(follower.read(10_000)) == [1, 3]
    assert follower.number == written.number


def test_a_follower_reads_on_when_the_folder_is_cleaned_up(written):
    """A follower reads new entries although the folder of the journal was deleted."""
    written.append(metric(1))
    follower = reader.Follower(lambda: written.folder)
    follower.read(10_000)
    shutil.rmtree(written.folder)
    written.append(metric(2))

    assert steps(follower.read(10_000)) == [2]


def test_a_closed_journal_accepts_no_entry(written):
    """Appending to a closed journal raises `JournalError`."""
    written.append(metric(1))
    written.close()

    with pytest.raises(JournalError, match="closed"):
        written.append(metric(2))


values = st.floats(allow_nan=True, allow_infinity=True)


@given(values)
def test_a_value_reads_back_as_the_very_same(value):
    """Each float reads back as the same value, including NaN and infinity."""
    line = records.line(1, metric(1, value))

    ((_, back),) = records.values_of(records.parse(line[:-1]))
    assert repr(back) == repr(value)


@given(st.text(max_size=300))
def test_any_key_reads_back_as_the_very_same(key):
    """Any text reads back as the same key, and takes one line."""
    body = records.metrics_body(RUN, 1, 1, records.pair(records.quote(key), 1.0))
    line = records.line(1, body)

    assert line.count(b"\n") == 1
    assert dict(records.values_of(records.parse(line[:-1]))) == {key: 1.0}


@given(st.binary(max_size=200))
def test_foreign_bytes_are_not_an_entry(data):
    """Arbitrary bytes are never parsed as an entry."""
    assert records.parse(data) is None


@given(st.data())
def test_a_changed_line_is_not_an_entry(data):
    """A line with one flipped bit is not parsed as an entry."""
    line = bytearray(records.line(17, metric(17))[:-1])
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] ^= 1 << data.draw(st.integers(0, 7))

    # The checksum does not cover the quote and the comma after it, but the line is not JSON without them.
    assert records.parse(bytes(line)) is None


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    torn=st.integers(0, 150),
    order=st.randoms(use_true_random=False),
    copies=st.integers(0, 2),
    foreign=st.binary(max_size=80),
)
def test_whole_entries_are_read_once_and_in_order(lengths, torn, order, copies, foreign):
    """Whole entries are read once and in order, despite torn, renamed and copied segments and foreign lines."""
    numbers = count(1)
    segments = [[next(numbers) for _ in range(length)] for length in lengths]
    with TemporaryDirectory() as folder:
        names = list(range(len(segments) + copies))
        order.shuffle(names)
        files = [b"".join(records.line(number, metric(number)) for number in segment) for segment in segments]
        for copy in range(copies):
            files.append(files[copy % len(segments)])
        last = files[len(segments) - 1]
        files[len(segments) - 1] = last[: max(0, len(last) - torn)]
        for name, content in zip(names, files, strict=True):
            lines = content.splitlines(keepends=True)
            lines.insert(order.randint(0, len(lines)), foreign + b"\n")
            whole_lines = [line if line.endswith(b"\n") else line + b"\n" for line in lines]
            Path(folder, f"{name:06d}.jsonl").write_bytes(b"".join(whole_lines) + b"\0" * 100)
        found = [entry["n"] for entry in reader.read(Path(folder))]

    everything = [number for segment in segments for number in segment]
    assert found == sorted(set(found))
    is_copied = copies > (len(segments) - 1)
    survivors = everything if is_copied or not torn else everything[: len(everything) - len(segments[-1])]
    assert set(survivors) <= set(found) <= set(everything)


def test_a_journal_with_a_limit_drops_its_oldest_segments(tmp_path, monkeypatch):
    """The size on disk stays below the limit, and the dropped entries are counted exactly, without headers."""
    monkeypatch.setattr(journal, "SEGMENT", 2**12)
    found = Journal(tmp_path / "state", uri=URI, kind=journal.LINES, most=2**14)
    for number in range(1000):
        found.append(records.body("line", at=number))
    folder = found.folder
    assert folder.parent == tmp_path / "state" / journal.LINES
    assert sum(path.stat().st_size for path in folder.glob("*.jsonl")) <= 2**14

    left = [entry["at"] for entry in reader.read(folder) if entry["op"] == "line"]
    assert left == list(range(1000 - len(left), 1000))
    assert found.dropped == 1000 - len(left)
    assert found.waiting == len(left)
    found.ack(found.number)
    assert found.waiting == 0
    assert found.close() is None


def test_a_reader_goes_on_after_the_segments_that_a_limit_has_removed(tmp_path, monkeypatch):
    """A reader that was overtaken finishes its segment, and continues with the oldest one that is left."""
    monkeypatch.setattr(journal, "SEGMENT", 2**12)
    found = Journal(tmp_path / "state", uri=URI, most=2**14)
    found.append(records.body("line", at=0))
    follower = reader.Follower(lambda: found.folder)
    seen = [entry["at"] for entry in follower.read(2**20) if entry["op"] == "line"]
    for number in range(1, 1000):
        found.append(records.body("line", at=number))
    while entries := follower.read(2**20):
        seen += [entry["at"] for entry in entries if entry["op"] == "line"]
    follower.close()

    assert seen == sorted(set(seen))
    assert seen[0] == 0
    assert seen[-1] == 999
    assert len(seen) < 1000
    found.ack(found.number)
    found.close()


def test_the_header_has_more_fields_if_wanted(tmp_path):
    """Facts about the process are in the header of each segment."""
    found = Journal(tmp_path / "state", uri=URI, about=lambda: {"resource": {"service.name": "trainer"}})
    found.append(records.body("line"))
    assert reader.header(found.folder)["resource"] == {"service.name": "trainer"}
    found.ack(found.number)
    found.close()
