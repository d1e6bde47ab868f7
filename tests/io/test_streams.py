"""Text written directly to the descriptor of a standard stream, past its buffer."""

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
def test_a_full_disk_does_not_change_the_exit_status(tmp_path):
    """If the text stayed in the buffer, Python would exit with status 120."""
    script = tmp_path / "full.py"
    script.write_text(FULL)

    assert os.waitstatus_to_exitcode(os.system(f"{sys.executable} {script} >/dev/full 2>/dev/full")) == 7


def test_output_of_the_job_comes_first(start_python):
    """The stream's buffer is flushed first."""
    code = (
        "import sys\nfrom autogen_team._process import streams\nsys.stdout.write('1 ')\nstreams.write(sys.stdout, '2')"
    )

    assert start_python("-c", code, fresh=True, PYTHONUNBUFFERED="").finish()[1] == "1 2"


def test_a_slow_reader_gets_the_whole_text(monkeypatch):
    """The whole text arrives, even if the pipe is full and another process has made it non-blocking."""
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
def test_a_replaced_stream_gets_the_text_itself(stand_in):
    """Characters that the encoding lacks are escaped."""
    stream = stand_in()

    streams.write(stream, "é")

    stream.seek(0)
    assert stream.read() == ("é" if isinstance(stream, io.StringIO) else "\\xe9")
