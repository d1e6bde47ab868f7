"""What is written is there, whatever happens to the process, the disk or the files afterwards."""

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

from autogen_team.io._tracking import entries, journal, reading
from autogen_team.io._tracking.journal import Journal, JournalError
from autogen_team.io._tracking.wakeup import Wakeup

URI = "sqlite:////somewhere/mlflow.db"
RUN = "0123456789abcdef0123456789abcdef"


def metric(number: int, value: float = 0.5) -> str:
    """Return the body of a metric."""
    return entries.metrics_body(RUN, 1_700_000_000_000 + number, number, entries.pair(entries.quote("loss"), value))


@pytest.fixture
def written(tmp_path):
    """Return a journal, closed after the test."""
    found = Journal(tmp_path / "state", uri=URI)
    yield found
    found.close()


def steps(found: list[entries.Entry]) -> list[int]:
    """Return the steps of the metrics among the entries."""
    return [entry["step"] for entry in found if entry["op"] == "metrics"]


def test_an_entry_is_on_disk_when_append_returns(written):
    """Another reader sees it at once, without any flush."""
    written.append(metric(1))

    assert steps(reading.read(written.folder)) == [1]


def test_each_line_is_json_that_proves_itself(written):
    """Anybody can read it, and anybody can check it, with a JSON parser and a CRC-32."""
    written.append(metric(1))

    for line in written.path(1).read_bytes().rstrip(b"\0").splitlines():
        entry = json.loads(line)
        assert int(entry["crc"], 16) == crc32(line[len('{"crc":"01234567",') :])


def test_a_segment_begins_with_who_writes_what(written):
    """A reader years later knows the format, the process, the machine and the store."""
    written.append(metric(1))

    header = reading.read(written.folder)[0]
    assert (header["op"], header["version"], header["pid"], header["uri"]) == ("journal", 1, os.getpid(), URI)
    assert header["boot"] == journal.boot_id()
    assert header["started"] == journal.started_at(os.getpid())


def test_folder_and_files_are_for_their_owner_only(written):
    """Parameters of a job are nobody else's business."""
    written.append(metric(1))

    assert written.folder.parent.stat().st_mode & 0o777 == 0o700
    assert written.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in written.folder.iterdir()} == {0o600}


def test_nothing_is_made_before_the_first_entry(tmp_path, written):
    """A job that tracks nothing leaves nothing."""
    assert not (tmp_path / "state").exists()


def test_segments_have_a_size(written, monkeypatch):
    """A long journal is many files, all of whose entries are read in order."""
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    for number in range(500):
        written.append(metric(number))

    sizes = [path.stat().st_size for path in written.folder.glob("*.jsonl")]
    assert len(sizes) > 10
    assert max(sizes) <= 4096
    assert steps(reading.read(written.folder)) == list(range(500))


def test_an_entry_longer_than_a_segment_is_whole(written, monkeypatch):
    """A dataset's profile may have megabytes."""
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    written.append(entries.body("params", run=RUN, values={"long": "x" * 100_000}))
    written.append(metric(1))

    found = reading.read(written.folder)
    assert [len(entry["values"]["long"]) for entry in found if entry["op"] == "params"] == [100_000]
    assert steps(found) == [1]


def test_segments_go_once_all_in_them_is_acknowledged(written, monkeypatch):
    """And not before."""
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    numbers = [written.append(metric(number)) for number in range(100)]
    written.ack(numbers[49])

    assert reading.acked(written.folder) == numbers[49]
    assert set(range(50, 100)) <= set(steps(reading.read(written.folder)))
    assert 0 not in steps(reading.read(written.folder))


@pytest.mark.parametrize("damage", [b"", b"\0" * 60, b'{"acked":100}\n', "torn", "higher"])
def test_a_damaged_acknowledgement_is_none(written, damage):
    """All is delivered again then, of which a store takes nothing twice; nothing is left out."""
    written.ack(written.append(metric(1)))
    path = written.folder / "acked"
    whole = path.read_bytes()
    damage = {"torn": whole[:30], "higher": whole.replace(b'"n":2', b'"n":9')}.get(damage, damage)
    assert (reading.acked(written.folder), damage != whole) == (2, True)
    path.write_bytes(damage)

    assert reading.acked(written.folder) == 0


def test_a_new_segment_still_knows_which_runs_are_open(written, monkeypatch):
    """The entry that opened them may be gone with its segment."""
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    written.run_opening("mark", "7")
    written.run_opened(RUN, mark=None, name="train", experiment="1")
    last = [written.append(metric(number)) for number in range(100)][-1]
    written.ack(last)

    (path,) = written.folder.glob("*.jsonl")
    header = entries.parse(path.read_bytes().splitlines()[0])
    assert [(run["run"], run["name"]) for run in header["open"]] == [(RUN, "train")]
    assert header["opening"] == [{"mark": "mark", "experiment": "7"}]


def test_a_journal_without_rest_is_removed(written):
    """What the store has needs no copy."""
    written.ack(written.append(metric(1)))
    folder = written.folder

    assert written.close() is None
    assert not folder.exists()


def test_a_journal_with_a_rest_stays(written):
    """Under its name, without the empty end of its segment."""
    written.append(metric(1))

    folder = written.close()
    assert steps(reading.read(folder)) == [1]
    assert not (folder / "000001.jsonl").read_bytes().endswith(b"\0")


def test_threads_write_whole_lines_in_one_order(written, monkeypatch):
    """Every entry is there once, and numbers are in the order of the file."""
    monkeypatch.setattr(journal, "SEGMENT", 16_384)
    threads = [
        threading.Thread(target=lambda of: [written.append(metric(of * 1000 + n)) for n in range(500)], args=(of,))
        for of in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = reading.read(written.folder)
    assert sorted(steps(found)) == sorted(of * 1000 + n for of in range(8) for n in range(500))
    assert [entry["n"] for entry in found] == list(range(1, len(found) + 1))


def test_a_signal_handler_may_write_in_the_midst_of_a_write(written):
    """It neither waits for the code that it interrupts nor mixes with it."""
    numbers = count(1_000_000)
    before = signal.signal(signal.SIGALRM, lambda *_: written.append(metric(next(numbers))))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for number in range(20_000):
            written.append(metric(number))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    found = steps(reading.read(written.folder))
    assert [step for step in found if step < 1_000_000] == list(range(20_000))
    # A handler may be interrupted by the next one before it writes.
    assert sorted(step for step in found if step >= 1_000_000) == list(range(1_000_000, next(numbers)))


def test_a_forked_child_has_a_journal_of_its_own(written):
    """Two processes in one folder would overwrite each other."""
    written.append(metric(1))
    reader, writer = os.pipe()
    if os.fork() == 0:
        written.after_fork()
        written.append(metric(2))
        os.write(writer, str(written.folder).encode())
        os._exit(0)
    os.wait()
    child = Path(os.read(reader, 1000).decode())
    os.close(reader)
    os.close(writer)

    assert child != written.folder
    assert steps(reading.read(child)) == [2]
    assert steps(reading.read(written.folder)) == [1]


def test_what_a_killed_process_wrote_is_there(tmp_path, start_python):
    """SIGKILL takes what is in the process, not what is in its journal."""
    code = (
        "import itertools, sys; from pathlib import Path\n"
        "from autogen_team.io._tracking import entries; from autogen_team.io._tracking.journal import Journal\n"
        f"found = Journal(Path({str(tmp_path / 'state')!r}), uri='x')\n"
        "for n in itertools.count():\n"
        f"    found.append(entries.metrics_body({RUN!r}, 1, n, '\"loss\":0.5'))\n"
        "    if n % 1000 == 999: print(n, flush=True)\n"
    )
    process = start_python("-c", code)
    process.wait_for("29999")
    process.send(signal.SIGKILL)
    _, out, _ = process.finish()

    (folder,) = journal.folder_of(tmp_path / "state").iterdir()
    found = steps(reading.read(folder))
    acknowledged = int((out.split() or ["29999"])[-1])
    assert found == list(range(len(found)))
    assert len(found) > acknowledged


def test_a_full_disk_is_an_error_not_a_death(written, monkeypatch):
    """The space of a segment is taken before it is mapped, so that no write into it can fail."""
    calls = []

    def full(*_):
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(JournalError, match="No space left"):
        written.append(metric(1))
    with pytest.raises(JournalError):
        written.append(metric(2))

    assert len(calls) == 1  # the second one did not ask the disk again, so soon after


def test_writing_goes_on_when_there_is_space_again(written, monkeypatch):
    """A second after the failure it is tried anew."""
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

    assert steps(reading.read(written.folder)) == [2]


def test_a_file_system_that_cannot_reserve_space_gets_zeros(written, monkeypatch):
    """Which takes the space just as well."""

    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    written.append(metric(1))

    assert steps(reading.read(written.folder)) == [1]


def test_a_short_write_is_a_full_disk(written, monkeypatch):
    """Where space cannot be reserved; a file that is shorter than its map would be another error altogether."""

    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    write = os.write
    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1000]))
    with pytest.raises(JournalError, match="No space left"):
        written.append(metric(1))


def test_a_beginning_that_fails_leaves_nothing_behind(written, monkeypatch):
    """A full disk is tried again each second: descriptors would run out in minutes."""
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
    assert list(journal.folder_of(written._state).iterdir()) == []
    written.append(metric(3))

    assert steps(reading.read(written.folder)) == [3]


def test_two_threads_do_not_recover_the_same_journal(tmp_path, run_python):
    """The lock is the process's: the second would get it too, and lose it for both."""
    folder = tmp_path / "journals" / "host-1-x"
    folder.mkdir(parents=True)
    lock = journal.take_over(folder)

    assert journal.take_over(folder) is None
    assert journal.is_locked(folder)
    code = (
        "from pathlib import Path; from autogen_team.io._tracking import journal\n"
        f"print(journal.take_lock(Path({str(folder)!r})))"
    )
    assert run_python("-c", code)[1] == "None\n"
    journal.give_back(folder, lock)
    assert not journal.is_locked(folder)
    journal.give_back(folder, journal.take_over(folder))


def test_a_signal_handler_may_wake_in_the_midst_of_a_wakeup():
    """A `threading.Event` would wait for itself for ever."""
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
    wakeup.wait(0.01)  # it was used up

    assert 0.01 <= time.monotonic() - began < 60.0


def test_the_lock_tells_the_living_from_the_dead(tmp_path, written, run_python):
    """Nobody else can take it while this process lives."""
    written.append(metric(1))
    code = (
        "import sys; from pathlib import Path; from autogen_team.io._tracking import journal\n"
        f"print(journal.take_lock(Path({str(written.folder)!r})))"
    )

    assert run_python("-c", code)[1] == "None\n"


def test_a_follower_reads_while_the_writer_writes(written, monkeypatch):
    """Each entry once, over the ends of segments, also when segments are removed behind it."""
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    follower = reading.Follower(written)
    found: list[entries.Entry] = []
    for number in range(1000):
        written.append(metric(number))
        if number % 7 == 0:
            found += follower.read(1000) or []
            written.ack(found[-1]["n"])
    while (more := follower.read(1000)) is not None:
        found += more

    assert steps(found) == list(range(1000))
    assert follower.number == written.number


def test_a_line_that_is_no_entry_holds_up_nothing(written):
    """It is counted as read, and what comes behind it is delivered."""
    written.append(metric(1))
    written.append('"op":"metrics","step":True}')
    written.append(metric(3))
    follower = reading.Follower(written)

    assert steps(follower.read(10_000)) == [1, 3]
    assert follower.number == written.number


def test_a_follower_reads_on_when_the_folder_is_cleaned_up(written):
    """By somebody who thought that it was rubbish: what the process had written is not lost with it."""
    written.append(metric(1))
    follower = reading.Follower(written)
    follower.read(10_000)
    shutil.rmtree(written.folder)
    written.append(metric(2))

    assert steps(follower.read(10_000)) == [2]


def test_nothing_is_written_once_it_is_closed(written):
    """It would be delivered by nobody."""
    written.append(metric(1))
    written.close()

    with pytest.raises(JournalError, match="closed"):
        written.append(metric(2))


values = st.floats(allow_nan=True, allow_infinity=True)


@given(values)
def test_a_value_reads_back_as_the_very_same(value):
    """Also those that JSON has no numbers for."""
    line = entries.line(1, metric(1, value))

    ((_, back),) = entries.values_of(entries.parse(line[:-1]))
    assert repr(back) == repr(value)


@given(st.text(max_size=300))
def test_any_key_reads_back_as_the_very_same(key):
    """Quotes, newlines and every alphabet; one line each."""
    body = entries.metrics_body(RUN, 1, 1, entries.pair(entries.quote(key), 1.0))
    line = entries.line(1, body)

    assert line.count(b"\n") == 1
    assert dict(entries.values_of(entries.parse(line[:-1]))) == {key: 1.0}


@given(st.binary(max_size=200))
def test_foreign_bytes_are_no_entry(data):
    """Whatever they are."""
    assert entries.parse(data) is None


@given(st.data())
def test_a_changed_line_is_no_entry(data):
    """A single bit is enough."""
    line = bytearray(entries.line(17, metric(17))[:-1])
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] ^= 1 << data.draw(st.integers(0, 7))

    # The quote and the comma after the checksum are not proven by it, but no JSON without them.
    assert entries.parse(bytes(line)) is None


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    torn=st.integers(0, 150),
    order=st.randoms(use_true_random=False),
    copies=st.integers(0, 2),
    foreign=st.binary(max_size=80),
)
def test_what_is_whole_is_read_once_and_in_order(lengths, torn, order, copies, foreign):
    """Torn ends, segments renamed in any order, copies of segments, foreign lines between ours."""
    numbers = count(1)
    segments = [[next(numbers) for _ in range(length)] for length in lengths]
    with TemporaryDirectory() as folder:
        names = list(range(len(segments) + copies))
        order.shuffle(names)
        files = [b"".join(entries.line(number, metric(number)) for number in segment) for segment in segments]
        for copy in range(copies):
            files.append(files[copy % len(segments)])
        last = files[len(segments) - 1]
        files[len(segments) - 1] = last[: max(0, len(last) - torn)]
        for name, content in zip(names, files, strict=True):
            lines = content.splitlines(keepends=True)
            lines.insert(order.randint(0, len(lines)), foreign + b"\n")
            whole_lines = [line if line.endswith(b"\n") else line + b"\n" for line in lines]
            Path(folder, f"{name:06d}.jsonl").write_bytes(b"".join(whole_lines) + b"\0" * 100)
        found = [entry["n"] for entry in reading.read(Path(folder))]

    everything = [number for segment in segments for number in segment]
    assert found == sorted(set(found))
    is_copied = copies > (len(segments) - 1)
    survivors = everything if is_copied or not torn else everything[: len(everything) - len(segments[-1])]
    assert set(survivors) <= set(found) <= set(everything)
