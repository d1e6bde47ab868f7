"""Full disks, closed pipes, deleted files, signals: the job continues, one warning is logged, and the log recovers."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import shutil
import subprocess
import sys
import threading

import pytest
from loguru import logger

from autogen_team._logs import file, pipeline


def test_a_full_disk_is_reported_once_and_counted(start, tmp_path, capsys):
    """200 failing lines cause one warning; when there is space again, the file states their number."""
    path = tmp_path / "job.log"
    path.symlink_to("/dev/full")
    start(sink=str(path), intercept=True, format="{message}")
    for number in range(200):
        logger.info("line {}", number)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "cannot write the log to" in err
    assert "No space left on device" in err
    path.unlink()
    logger.info("space again")
    first, second = path.read_text().splitlines()
    assert first == "space again"
    assert second.startswith("200 lines of log could not be written here: OSError: [Errno 28]")


def test_without_the_bridge_the_report_goes_to_standard_logging(run_python, script):
    """Without interception, the report goes through the standard logger `autogen_team`."""
    body = 'logger.info("one")\nlogger.info("two")\nstop()'
    status, _, err = run_python(script(body, sink="/dev/full"))
    first, second = err.splitlines()
    assert status == 0
    assert "cannot write the log to /dev/full" in first
    assert "2 lines of log could not be written here" in second


def test_a_disk_that_fills_during_a_line_tears_one_line(run_python, script, tmp_path):
    """The rest of that line is lost, and the next starts on a new line. A file size limit stands in for the disk."""
    path = tmp_path / "job.log"
    body = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for number in range(200):
    logger.info("{:08}", number)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
logger.info("space again")
stop()
"""
    status, _, err = run_python(script(body, sink=str(path), format="{message}", intercept=True))
    assert status == 0
    assert err.count("\n") == 1
    lines = path.read_text().splitlines()
    assert lines[:111] == [f"{number:08}" for number in range(111)]
    assert lines[111:113] == ["0", "space again"]
    assert lines[113].startswith("89 lines of log could not be written here: OSError: [Errno 27]")


def test_a_tmpfs_that_is_full_and_then_is_not(start, tmp_path, capsys):
    """A real full file system, where mounting is permitted."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")
    try:
        (folder / "ballast").write_bytes(b"x" * 40_000)
        stop = start(sink=str(folder / "job.log"), intercept=True, format="{message}")
        for number in range(200):
            logger.info("{} {}", number, "x" * 990)
        (folder / "ballast").unlink()
        for number in range(200, 210):
            logger.info("{} {}", number, "x" * 990)
        stop()
        numbers = [int(line.split()[0]) for line in (folder / "job.log").read_text().splitlines() if "x" in line]
        assert numbers[-10:] == list(range(200, 210))
        assert capsys.readouterr().err.count("\n") == 1
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_fault_is_raised_to_the_job_on_request(start):
    """`catch=False` raises, as in loguru; `stop` still raises nothing."""
    stop = start(sink="/dev/full", catch=False)
    with pytest.raises(OSError, match="No space left"):
        logger.info("hello")
    stop()


@pytest.mark.parametrize("sink", ["stdout", "stderr"])
def test_a_pipe_that_nobody_reads_does_not_stop_the_job(script, sink):
    """As in `job | head -1`: the job ends with its own status and reports the broken pipe once."""
    body = """
for number in range(2000):
    logger.info("line {}", number)
(sys.stderr if SERVICE.sink == "stdout" else sys.stdout).write("finished\\n")
raise SystemExit(7)
"""
    reader, writer = os.pipe()
    command = [sys.executable, script(body, sink=sink, intercept=True)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, sink: writer}
    with subprocess.Popen(command, text=True, **streams) as process:
        os.close(writer)
        os.read(reader, 10)
        os.close(reader)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 7
    if sink == "stderr":
        assert out == "finished\n"
    else:
        first, second, third = err.splitlines()
        assert "cannot write the log to stdout: BrokenPipeError" in first
        assert second == "finished"
        assert "lines of log could not be written" in third


def test_what_the_job_prints_itself_is_not_touched(script):
    """The job's own `print` fails on the closed pipe as it would without us."""
    body = """
import errno
for number in range(2000):
    logger.info("line {}", number)
try:
    print("x" * 100_000, flush=True)
except BrokenPipeError:
    sys.stderr.write("as ever\\n")
os._exit(0)
"""
    reader, writer = os.pipe()
    command = [sys.executable, script(body, sink="stdout", intercept=True)]
    with subprocess.Popen(command, text=True, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        os.close(reader)
        _, err = process.communicate(timeout=60)
    assert err.endswith("as ever\n")


def test_a_deleted_file_is_created_again(start, tmp_path):
    """The next line creates the file again."""
    path = tmp_path / "logs" / "job.log"
    start(sink=str(path), format="{message}")
    logger.info("one")
    path.unlink()
    logger.info("two")
    shutil.rmtree(path.parent)
    logger.info("three")
    assert path.read_text() == "three\n"


def test_a_moved_file_is_created_again(start, tmp_path):
    """As with logrotate: earlier lines are in the moved file."""
    path = tmp_path / "job.log"
    start(sink=str(path), format="{message}")
    logger.info("one")
    path.rename(tmp_path / "job.log.1")
    logger.info("two")
    assert ((tmp_path / "job.log.1").read_text(), path.read_text()) == ("one\n", "two\n")


def test_a_replaced_file_is_noticed(start, tmp_path, wait_until):
    """As with logrotate's `create`: the new file is used within a second."""
    path = tmp_path / "job.log"
    start(sink=str(path), format="{message}")
    logger.info("one")
    path.rename(tmp_path / "job.log.1")
    path.touch()
    wait_until(lambda: logger.info("more") or path.stat().st_size > 0)


def test_a_burst_into_a_deleted_file_is_written_again(start, tmp_path):
    """During a burst the file is not checked at every line, but no line is lost."""
    path = tmp_path / "job.log"
    stop = start(sink=str(path), format="{message}")
    for number in range(2000):
        logger.info("{}", number)
        if number == 1500:
            kept = path.read_text()
            path.unlink()
    stop()
    assert kept.splitlines() == [str(number) for number in range(1501)]
    lines = path.read_text().splitlines()
    assert lines[-1] == "1999"
    assert set(map(int, lines)) >= set(range(1501, 2000))


def test_a_burst_that_ends_with_a_deletion_is_written_again(tmp_path):
    """Lines written after the deletion are written again when the file is closed, at the latest."""
    path = tmp_path / "job.log"
    it = file.File(str(path))
    it._trusted_until = float("inf")
    it.write(b"one\n")
    path.unlink()
    it.write(b"two\n")
    it.close()
    assert path.read_text() == "one\ntwo\n"


def test_a_moved_file_that_cannot_be_replaced_is_still_written(start, tmp_path, monkeypatch):
    """If the file was moved and no new one can be created, the lines go to the moved file."""
    path = tmp_path / "logs" / "job.log"
    start(sink=str(path), format="{message}")
    logger.info("one")
    path.parent.rename(tmp_path / "old")
    path.parent.write_text("a file in the way")
    (tmp_path / "old" / "job.log").rename(tmp_path / "job.log.1")
    logger.info("two")
    assert (tmp_path / "job.log.1").read_text() == "one\ntwo\n"


def test_a_deleted_file_that_cannot_be_created_again_is_a_fault(start, tmp_path, capsys):
    """The lost line is counted, and the log continues when the file can be created."""
    folder = tmp_path / "logs"
    start(sink=str(folder / "job.log"), format="{message}", intercept=True)
    shutil.rmtree(folder)
    folder.write_text("a file in the way")
    logger.info("lost")
    folder.unlink()
    logger.info("found")
    assert (folder / "job.log").read_text().startswith("found\n1 line of log could not be written here")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_process_that_closes_all_descriptors_continues_to_log(start, tmp_path):
    """Daemons close all descriptors; descriptors that were reused since are not closed."""
    path = tmp_path / "job.log"
    start(sink=str(path), format="{message}")
    logger.info("one")
    it = pipeline._started[-1].sink._destination
    numbers = it._fd, it._folder
    for number in numbers:
        os.close(number)
    others = [os.open(os.devnull, os.O_RDONLY) for _ in numbers]
    try:
        logger.info("two")
        assert [os.fstat(number) is not None for number in others] == [True, True]
    finally:
        for number in others:
            os.close(number)
    assert path.read_text() == "one\ntwo\n"


def test_closed_descriptors_are_not_used(tmp_path):
    """Descriptors that were closed, and not reused, are not used."""
    it = file.File(str(tmp_path / "job.log"))
    os.close(it._fd)
    os.close(it._folder)
    it.write(b"two\n")
    it.close()
    assert (tmp_path / "job.log").read_text() == "two\n"


def test_a_closed_stream_is_reported_once(start, monkeypatch, capsys):
    """A closed stdout causes one warning, and a new stdout is used."""
    stream = io.StringIO()
    start(sink="stdout", intercept=True, format="{message}")
    with contextlib.redirect_stdout(stream):
        logger.info("one")
        stream.close()
        for _ in range(10):
            logger.info("lost")
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "closed file" in captured.err
    logger.info("two")
    assert capsys.readouterr().out.startswith("two\n10 lines of log could not be written here")


def test_a_stream_that_cannot_show_a_character_escapes_it(start, monkeypatch):
    """As with LANG=C, characters are escaped."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    start(sink="stdout", format="{message}")
    logger.info("loss ✓")
    assert raw.getvalue() == b"loss \\u2713\n"


def test_a_stream_needs_no_more_than_write(start, monkeypatch):
    """Some replacements of stderr have neither `flush` nor `isatty`."""

    class Minimal:
        def __init__(self):
            self.lines = []
            self.write = self.lines.append

    monkeypatch.setattr(sys, "stderr", stream := Minimal())
    start(format="{message}")
    logger.info("hello")
    assert stream.lines == ["hello\n"]


def test_a_stream_that_logs_its_input_causes_no_loop(start, monkeypatch, capfd):
    """With loguru's recipe for redirecting `print`, the line goes to the original stream."""

    class ToLogger:
        def write(self, text):
            for line in text.rstrip().splitlines():
                logger.info("written {}", line)

        def flush(self):
            pass

    start(format="{message}")
    monkeypatch.setattr(sys, "__stderr__", behind := io.StringIO())
    monkeypatch.setattr(sys, "stderr", ToLogger())
    logger.info("hello")
    assert behind.getvalue() == "written hello\n"


def test_a_signal_handler_may_log(script, run_python, tmp_path):
    """300 signals while the job logs: all lines of job and handler are complete, and the handler never raises."""
    path = tmp_path / "job.log"
    body = """
import signal, threading
count = 0
def handle(number, frame):
    nonlocal count
    logger.info("signal {}", count)
    try:
        raise ValueError("in the handler")
    except ValueError:
        logger.exception("failed {}", count)
    count += 1
signal.signal(signal.SIGUSR1, handle)
ready = threading.Event()
def send():
    sent = 0
    while sent < 300:
        if sent == count:
            os.kill(os.getpid(), signal.SIGUSR1)
            sent += 1
        ready.wait(0.0003)
thread = threading.Thread(target=send)
thread.start()
number = 0
while thread.is_alive() or number < 100:
    try:
        raise KeyError(number)
    except KeyError:
        logger.exception("line {}", number)
    number += 1
thread.join()
while count < 300:
    ready.wait(0.001)
print(number, count)
"""
    status, out, err = run_python(script(body, sink=str(path), format="{message}"))
    lines, signals = map(int, out.split())
    assert (status, err) == (0, "")
    seen = collections.Counter(path.read_text().splitlines())
    assert signals == 300
    expected = [f"line {number}" for number in range(lines)]
    expected += [f"{word} {number}" for number in range(signals) for word in ("signal", "failed")]
    assert [line for line in expected if seen[line] != 1] == []


def test_a_line_during_a_write_to_a_stream_comes_after_it(start, monkeypatch):
    """A line logged inside a write to the stream is written after it, because Python forbids reentrant writes."""

    class Refusing(io.StringIO):
        interrupted = False

        def write(self, text):
            if self.interrupted:
                raise RuntimeError("reentrant call inside <_io.BufferedWriter>")
            self.interrupted = True
            if text == "first\n":
                logger.info("second")
            self.interrupted = False
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", stream := Refusing())
    monkeypatch.setattr(sys, "__stderr__", stream)
    start(format="{message}")
    logger.info("first")
    assert stream.getvalue() == "first\nsecond\n"


def test_a_deleted_stream_is_reported_like_any_other_fault(start, monkeypatch):
    """A deleted console window raises RuntimeError, as a reentrant write does."""

    class Gone(io.StringIO):
        is_there = False

        def write(self, text):
            if not self.is_there:
                raise RuntimeError("wrapped C/C++ object of type Console has been deleted")
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", stream := Gone())
    start(format="{message}")
    for number in range(2000):
        logger.info(number)
    stream.is_there = True
    logger.info("here again")

    lines = stream.getvalue().splitlines()
    assert lines[0] == "here again"
    assert lines[1].startswith("2000 lines of log could not be written here: RuntimeError: wrapped")


def test_threads_write_whole_lines(start, tmp_path):
    """Each thread's lines are complete, each once."""
    path = tmp_path / "job.log"
    start(sink=str(path), format="{message}")

    def work(name):
        for number in range(500):
            logger.info("{} {} {}", name, number, "x" * 50)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 4000
    assert all(line.endswith("x" * 50) for line in lines)


def test_a_line_after_the_stop_is_dropped(start, tmp_path):
    """A thread may be about to write when `stop` is called."""
    path = tmp_path / "job.log"
    stop = start(sink=str(path), format="{message}")
    sink = pipeline._started[-1].sink
    stop()
    record = {"message": "late"}
    sink._put(b"late\n", record)
    assert path.read_text() == ""


def test_stop_raises_nothing(start, monkeypatch, caplog):
    """Errors in `stop` are reported."""
    stop = start()

    def fail():
        raise OSError("cannot be closed")

    monkeypatch.setattr(pipeline._started[-1].sink._destination, "close", fail)
    stop()
    assert "cannot be closed" in caplog.text
