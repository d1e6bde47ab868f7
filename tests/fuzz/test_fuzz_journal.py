"""After any damage to a journal's files, its intact entries are read, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autogen_team._spool import index, journal, reader, records
from autogen_team._spool.journal import Journal

RUN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module", autouse=True)
def small_segments() -> Iterator[None]:
    """Use small segments, so that an example does not write a megabyte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "SEGMENT", 8192)
        yield


def write(folder: Path, count: int) -> tuple[Path, Journal]:
    """Write a journal with this many metrics, like a job that dies without closing it."""
    found = Journal(folder, uri="sqlite:////somewhere/mlflow.db")
    found.run_opened(RUN, mark=None, name="train", experiment="digits")
    for number in range(count):
        found.append(records.metrics_body(RUN, 1_700_000_000_000, number, records.pair(records.quote("loss"), 0.5)))
    return found.path(1), found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a real segment, with some of the zeros after the last line."""
    path, its = write(tmp_path_factory.mktemp("journal"), 20)
    data = path.read_bytes()
    its.close()
    return data.rstrip(b"\0") + b"\0" * 50


def read(data: bytes, acked: bytes = b"") -> list[records.Entry]:
    """Read a journal with one segment of these bytes by all functions that read journals."""
    with TemporaryDirectory() as state:
        folder = Path(state) / "journals" / "host-1-x"
        folder.mkdir(parents=True)
        (folder / "000001.jsonl").write_bytes(data)
        (folder / "acked").write_bytes(acked)
        found = reader.read(folder)
        assert isinstance(reader.acked(folder), int)
        for one in index.find(Path(state)):
            assert one.waiting <= len(found)
        return found


@settings(deadline=None)
@given(st.binary(max_size=500), st.binary(max_size=40))
def test_any_bytes_are_a_journal_without_entries(data, acked):
    """The file may never have been a journal."""
    assert read(data, acked) == []


@settings(deadline=None)
@given(st.data())
def test_damage_affects_only_the_damaged_lines(written, data):
    """After flips, overwrites, cuts and insertions, every line before the damage is read unchanged."""
    lines = written.rstrip(b"\0").split(b"\n")[:-1]
    whole = [records.parse(line) for line in lines]
    assert None not in whole
    damaged = bytearray(written)
    places = []
    for kind in data.draw(st.lists(st.sampled_from(["flip", "overwrite", "cut", "insert"]), min_size=1, max_size=4)):
        place = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        places.append(place)
        if kind == "flip" and damaged:
            damaged[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "overwrite":
            stretch = data.draw(st.binary(max_size=64))
            damaged[place : place + len(stretch)] = stretch
        elif kind == "cut":
            del damaged[place:]
        else:
            damaged[place:place] = data.draw(st.binary(max_size=64))
    found = read(bytes(damaged))

    end, before = 0, []
    for line, entry in zip(lines, whole, strict=True):
        end += len(line) + 1
        if end <= min(places):
            before.append(entry)
    assert found[: len(before)] == before

    def bare(entry: records.Entry) -> records.Entry:
        # A flipped bit may change only the case of a digit of the checksum.
        return {name: value for name, value in entry.items() if name != "crc"}

    assert all(bare(entry) in [bare(one) for one in whole] for entry in found)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_a_cut_removes_only_the_lines_after_it(written, place):
    """As after a power failure, the file is read up to its last whole line."""
    cut = written[:place]
    whole = cut.rstrip(b"\0").split(b"\n")
    complete = [records.parse(line) for line in whole]

    assert read(cut) == [entry for entry in complete if entry is not None]
    assert None not in complete[:-1]


@settings(deadline=None)
@given(st.data())
def test_the_delivery_of_a_living_process_survives_damage_of_its_own_file(data):
    """Only written entries are read, and reading ends."""
    with TemporaryDirectory() as state:
        path, its = write(Path(state), 5)
        whole = reader.read(path.parent)
        size = len(path.read_bytes().rstrip(b"\0"))
        with path.open("r+b") as file:
            file.seek(data.draw(st.integers(0, size - 1)))
            file.write(data.draw(st.binary(min_size=1, max_size=40)))
        follower = reader.Follower(lambda: its.folder)
        found: list[records.Entry] = []
        # A line may look damaged while it is being written, so it is skipped only at the second attempt.
        while more := follower.read(data.draw(st.integers(1, 400))) or follower.read(400):
            found += more
        follower.close()
        its.close()

    assert all(entry in whole for entry in found)
