"""Many processes write one file: no line is lost or torn with forks, spawns, rotation and compression."""

from __future__ import annotations

import dataclasses
import gzip
import os
import re
import threading
import time

import pytest
from loguru import logger

from autogen_team._logs import loguru_internals, pipeline

PROCESSES = 8
LINES = 10_000
PADDING = "x" * 60


FLOOD = """
for number in range({lines}):
    logger.info("{{}} {{}} {{}} .", sys.argv[1], number, "x" * 60)
stop()
"""


def run_forked(lines=LINES):
    """Log many lines from forked workers, which inherit the sink."""
    children = []
    for worker in range(PROCESSES):
        child = os.fork()
        if not child:
            try:
                for number in range(lines):
                    logger.info("{} {} {} .", worker, number, PADDING)
            finally:
                os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * PROCESSES


@pytest.fixture
def run_spawned(start_python, script):
    """Return a function that logs many lines from processes that each start logging."""

    def run(lines=LINES, **fields):
        path = script(FLOOD.format(lines=lines), format="{message}", catch=False, **fields)
        workers = [start_python(path, str(number)) for number in range(PROCESSES)]
        assert [worker.finish() for worker in workers] == [(0, "", "")] * PROCESSES

    return run


def check(folder, lines=LINES):
    """Check that every line of every worker is complete and present once; return the files."""
    files = sorted(folder.glob("job*"))
    text = ""
    for file in files:
        content = file.read_bytes()
        text += (gzip.decompress(content) if file.suffix == ".gz" else content).decode()
    found = re.findall(rf"^(\d) (\d+) {PADDING} \.$", text, re.MULTILINE)
    assert text.count("\n") == len(found) == PROCESSES * lines
    assert len(set(found)) == PROCESSES * lines
    return files


@pytest.mark.parametrize("way", ["forked", "spawned"])
@pytest.mark.parametrize(
    "options",
    [{}, {"rotation": "1 MB"}, {"rotation": "500 KB", "compression": "gz"}],
    ids=["plain", "rotation", "rotation-gz"],
)
def test_eight_processes_lose_and_tear_no_line(start, run_spawned, tmp_path, way, options):
    """8 processes x 10,000 lines; loguru's own rotation loses up to a third of them."""
    path = str(tmp_path / "job.log")
    if way == "forked":
        stop = start(sink=path, format="{message}", catch=False, **options)
        run_forked()
        stop()
    else:
        run_spawned(sink=path, **options)
    files = check(tmp_path)
    assert len(files) >= (5 if options else 1)
    if "compression" in options:
        assert sum(file.suffix == ".gz" for file in files) == len(files) - 1


def test_packing_at_the_end_loses_no_line(run_spawned, tmp_path):
    """Without rotation, the file is compressed when it is closed, while other processes still write."""
    run_spawned(lines=300, sink=str(tmp_path / "job.log"), compression="gz")
    assert {file.suffix for file in check(tmp_path, lines=300)} == {".gz"}


def test_rotation_by_time_loses_no_line(run_spawned, tmp_path):
    """Every process has its own clock, and one of them rotates."""
    run_spawned(sink=str(tmp_path / "job.log"), rotation="1 second")
    check(tmp_path)


def test_rotation_by_time_happens_once(start, tmp_path, wait_until):
    """The old file is renamed when its time is over, and the new file is not."""
    path = tmp_path / "job.log"
    start(sink=str(path), rotation="1 second", format="{message}")
    began = time.monotonic()
    wait_until(lambda: logger.info("tick") or len(list(tmp_path.glob("job.*.log"))) == 1)
    assert time.monotonic() - began > 0.2
    assert all(line == "tick" for file in tmp_path.glob("job*") for line in file.read_text().splitlines())


@pytest.mark.parametrize("compression", [None, "gz"])
@pytest.mark.parametrize("retention", [0, 1, "2"])
@pytest.mark.parametrize("name", ["job.log", "job-{time:YYYY-MM-DD_HH-mm-ss-SSSSSS}.log"])
def test_retention_keeps_as_many_files_as_loguru_does(start, tmp_path, name, retention, compression):
    """Old files count; the current one does not and stays."""
    options = {"rotation": 50, "format": "{message}", "compression": compression}
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    start(sink=str(tmp_path / "ours" / name), retention=retention, **options)
    theirs = logger.add(tmp_path / "theirs" / name, retention=int(retention), **options)
    try:
        for number in range(20):
            logger.info("a line of some length {}", number)
        kept = {folder: list((tmp_path / folder).iterdir()) for folder in ("ours", "theirs")}
    finally:
        logger.remove(theirs)
    assert len(kept["ours"]) == len(kept["theirs"]) == int(retention) + 1
    newest = [path for path in kept["ours"] if path.suffix == ".log" and path.read_text().endswith(" 19\n")]
    assert len(newest) == 1


def test_a_line_longer_than_the_limit_is_written(start, tmp_path):
    """No empty file is rotated first."""
    start(sink=str(tmp_path / "job.log"), rotation=10, format="{message}")
    for number in range(3):
        logger.info("much longer than ten bytes {}", number)
    assert all(file.read_text().count("\n") == 1 for file in tmp_path.glob("job*"))
    assert len(list(tmp_path.glob("job*"))) == 3


def test_a_path_with_the_time_gets_a_new_name_for_each_file(start, tmp_path):
    """With a time in the path, as in loguru, each rotation opens a new path and keeps the old one."""
    start(sink=str(tmp_path / "job-{time:YYYY-MM-DD_HH-mm-ss-SSSSSS}.log"), rotation=10, format="{message}")
    for number in range(3):
        logger.info("much longer than ten bytes {}", number)
    assert len([file for file in tmp_path.glob("job-2*.log") if file.read_text().count("\n") == 1]) == 3


def test_a_path_with_the_time_needs_no_rotation(start, tmp_path):
    """Each start writes one file."""
    start(sink=str(tmp_path / "job-{time:YYYY}.log"), format="{message}")
    logger.info("hello")
    assert [file.read_text() for file in tmp_path.glob("job-2*.log")] == ["hello\n"]


def test_a_full_file_that_cannot_be_packed_or_removed_loses_no_line(start, tmp_path, monkeypatch, capsys):
    """The failure is reported."""

    def refuse(*_):
        raise PermissionError("refused")

    original = loguru_internals.rules
    monkeypatch.setattr(
        loguru_internals, "rules", lambda *args: dataclasses.replace(original(*args), compress=refuse, retain=refuse)
    )
    start(sink=str(tmp_path / "job.log"), rotation=10, format="{message}", intercept=True)
    for number in range(2):
        logger.info("much longer than ten bytes {}", number)
    assert sum(file.read_text().count("\n") for file in tmp_path.glob("job*")) == 2
    err = capsys.readouterr().err
    assert "cannot compress the log file" in err
    assert "cannot remove old log files" in err


def test_old_files_that_another_process_has_removed_are_ignored(start, tmp_path, monkeypatch, capsys):
    """Two processes may clean up at the same time."""

    def vanish(*_):
        raise FileNotFoundError("gone")

    original = loguru_internals.rules
    monkeypatch.setattr(
        loguru_internals, "rules", lambda *args: dataclasses.replace(original(*args), compress=vanish, retain=vanish)
    )
    start(sink=str(tmp_path / "job.log"), rotation=10, format="{message}", intercept=True)
    for number in range(2):
        logger.info("much longer than ten bytes {}", number)
    assert capsys.readouterr().err == ""


def test_rotation_continues_after_the_file_was_deleted(start, tmp_path):
    """The deletion is noticed at the next line."""
    path = tmp_path / "job.log"
    start(sink=str(path), rotation="1 MB", format="{message}")
    logger.info("one")
    path.unlink()
    logger.info("two")
    assert path.read_text() == "two\n"


def test_a_signal_handler_that_logs_does_not_deadlock(start, tmp_path):
    """Our lock is held while a line is written, and a handler does not wait for it."""
    path = tmp_path / "job.log"
    start(sink=str(path), rotation="1 MB", format="{message}")
    file = pipeline._started[-1].sink._destination
    append = file.append

    def interrupted(line):
        file.append = append
        logger.info("from the handler")
        append(line)

    file.append = interrupted
    logger.info("interrupted")
    assert path.read_text() == "from the handler\ninterrupted\n"


@pytest.mark.parametrize("options", [{}, {"rotation": "1 MB"}], ids=["plain", "rotation"])
def test_a_fork_during_a_line_of_another_thread_does_not_deadlock(start, tmp_path, options):
    """The child has no such thread, and still logs."""
    path = tmp_path / "job.log"
    start(sink=str(path), format="{message}", **options)
    sink = pipeline._started[-1].sink
    append = sink._destination.append
    inside, go_on = threading.Event(), threading.Event()

    def wait(line):
        inside.set()
        assert go_on.wait(30)
        append(line)

    sink._destination.append = wait
    thread = threading.Thread(target=logger.info, args=("parent",))
    thread.start()
    assert inside.wait(30)
    child = os.fork()
    if not child:
        del sink._destination.append
        logger.info("child")
        os._exit(0)
    if options:  # the child waits for its turn to write the file
        go_on.set()
    assert os.waitpid(child, 0)[1] == 0
    go_on.set()
    thread.join()
    assert sorted(path.read_text().splitlines()) == ["child", "parent"]
