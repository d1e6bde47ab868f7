"""Text that is written past the buffer of a standard stream."""

from __future__ import annotations

import fcntl
import io
import os
import sys
import threading

import pytest

from autogen_team._process import streams

FULL = """
import sys
from autogen_team._process import streams
for stream in (sys.stdout, sys.stderr):
    try:
        streams.write(stream, "a line\\n")
    except OSError:
        pass
sys.exit(7)
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110
def test_what_a_full_disk_refuses_does_not_change_the_exit_status(tmp_path):
    """Python would find the line in the buffer and exit with 120."""
    script = tmp_path / "full.py"
    script.write_text(FULL)

    assert os.waitstatus_to_exitcode(os.system(f"{sys.executable} {script} >/dev/full 2>/dev/full")) == 7


def test_what_the_job_has_printed_comes_first(start_python):
    """Its text may still be in the buffer of the stream."""
    code = (
        "import sys\nfrom autogen_team._process import streams\nsys.stdout.write('1 ')\nstreams.write(sys.stdout, '2')"
    )

    assert start_python("-c", code, fresh=True, PYTHONUNBUFFERED="").finish()[1] == "1 2"


def test_a_reader_that_is_slow_gets_all_of_it(monkeypatch):
    """Though another process has made the pipe non-blocking, and it is full."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    with open(writer, "w") as stream, open(reader, "rb") as source:  # noqa: PTH123
        monkeypatch.setattr(sys, "__stderr__", stream)
        heard: list[bytes] = []
        thread = threading.Thread(target=lambda: heard.append(source.read(300_000)))
        thread.start()
        streams.write(stream, "x" * 300_000)
        thread.join()

    assert len(heard[0]) == 300_000


@pytest.mark.parametrize("stand_in", [io.StringIO, lambda: io.TextIOWrapper(io.BytesIO(), "ascii")])
def test_a_stream_that_stands_in_gets_the_text_itself(stand_in):
    """As far as its encoding can express it."""
    stream = stand_in()

    streams.write(stream, "é")

    stream.seek(0)
    assert stream.read() == ("é" if isinstance(stream, io.StringIO) else "\\xe9")
