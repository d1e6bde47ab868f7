"""Output and input of a job are passed on unchanged; output is stored with the run's log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from autogen_team.cli._supervisor.transcript import Transcript
from testkit import forkserver

RUN = ("-m", "autogen_team", "run")


def test_every_byte_arrives_as_it_is(supervised, script):
    """Binary output and megabytes on both streams at once arrive unchanged."""
    path = script(
        "import sys, threading\n"
        "data = bytes(range(256)) * 20_000\n"
        "def write(stream): stream.buffer.write(data); stream.flush()\n"
        "threads = [threading.Thread(target=write, args=(one,)) for one in (sys.stdout, sys.stderr)]\n"
        "[one.start() for one in threads]; [one.join() for one in threads]\n"
    )

    ended = supervised(path)

    data = bytes(range(256)) * 20_000
    assert ended.stdout == data
    assert data in ended.stderr


def test_input_passes_through(supervised, script):
    """Input is passed on to its end."""
    ended = supervised(script("import sys; print(len(sys.stdin.buffer.read()))"), input=b"x" * 1_000_000)

    assert ended.stdout == b"1000000\n", ended.stderr


def test_both_streams_are_kept_with_the_run(supervised, script, the_output):
    """Lines are stored in order, without secrets and colours."""
    path = script(
        "import sys, os\n"
        "print('\\x1b[31mred\\x1b[0m', flush=True)\n"
        "print('to stderr', file=sys.stderr, flush=True)\n"
        "print('password=' + os.environ['WORD'], flush=True)\n"
        "sys.stdout.write('no end')\n"
    )

    ended = supervised(path, env={**os.environ, "WORD": "correct1horse2battery"})

    assert ended.stdout == b"\x1b[31mred\x1b[0m\npassword=correct1horse2battery\nno end"
    kept = the_output().splitlines()
    assert {"red", "to stderr", "password=***", "no end"} <= set(kept)


def test_the_traceback_of_the_end_is_kept(supervised, script, the_output):
    """The run contains the traceback that ended the job."""
    supervised(script("raise ValueError('boom')"))

    assert "ValueError: boom" in the_output()


@pytest.mark.parametrize("options", [["--no-keep-output"], ["--set", "logger.run_log=false"]])
def test_output_is_not_stored_if_disabled(supervised, script, the_run, store_uri, options):
    """Output is still passed on."""
    ended = supervised(*options, script("print('words')"))

    assert ended.stdout == b"words\n", ended.stderr
    found = mlflow.MlflowClient(store_uri).list_artifacts(the_run().info.run_id, "logs")
    assert not [one.path for one in found if "output" in one.path]


def test_a_reader_that_exits_breaks_the_pipe_of_the_job(script):
    """The job gets a broken pipe, as it would without us."""
    path = script("import sys\ntry:\n    while True: print('x' * 1000)\nexcept BrokenPipeError: sys.exit(7)")
    with forkserver.popen([*RUN, path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(60) in (7, 1, 120)


def test_a_background_process_does_not_delay_the_end(script, supervised):
    """A background process still holds the job's output."""
    path = script(
        "import subprocess; child = subprocess.Popen(['sleep', '600']); print('left', child.pid, flush=True)\n"
    )
    begun = time.monotonic()
    ended = supervised(path)
    pid = int(ended.stdout.split()[1])
    os.kill(pid, signal.SIGKILL)

    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - begun < 60


def test_a_background_process_may_continue_to_print(supervised):
    """Its output is read for a moment, and then no longer."""
    ended = supervised("--", "sh", "-c", "(while sleep 0.1; do echo x; done) & exit 3")

    assert ended.returncode == 3, ended.stderr


def test_output_that_cannot_be_written_is_reported(script, supervised, the_run):
    """A full disk does not end the job, and the user is informed."""
    path = script("print('words')")
    with Path("/dev/full").open("w") as full:
        ended = supervised(path, stdout=full)

    assert ended.returncode == 0
    assert b"output of the job is lost: 6 bytes could not be written: No space left on device" in ended.stderr
    assert the_run().info.status == "FINISHED"


def test_output_to_a_closed_stream_is_dropped(script):
    """A closed stream behaves like /dev/null."""
    path = script("print('words')")
    command = f"exec {sys.executable} -m autogen_team run {path} 1>&-"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)

    assert (ended.returncode, ended.stdout) == (0, b""), ended.stderr
    assert b"exception" not in ended.stderr


def test_the_first_and_the_last_line_are_the_link_to_the_run(supervised, script, mlflow_server):
    """For a server, the link is printed on stderr, because stdout belongs to the job."""
    ended = supervised("--tracking-uri", mlflow_server, script("print('words')"))

    lines = ended.stderr.decode().splitlines()
    first = next(line for line in lines if line.startswith("run: "))
    link = first.split()[-1]
    assert link.startswith(f"{mlflow_server}/#/experiments/")
    assert lines[-1].endswith(link)


def test_options_can_come_from_the_environment(supervised, script, the_run):
    """The variables of options are not passed to the job."""
    variables = {
        "AUTOGEN_TEAM_RUN_NAME": "named",
        "AUTOGEN_TEAM_RUN_DESCRIPTION": "why",
        "AUTOGEN_TEAM_RUN_TAGS": "fold=1 kind=test",
        "AUTOGEN_TEAM_ALERT_ON": "never",
    }
    path = script("import os; print([name for name in os.environ if name.startswith('AUTOGEN_TEAM_RUN_')])")

    ended = supervised(path, env={**os.environ, **variables})

    assert ended.stdout == b"[]\n", ended.stderr
    assert b"nothing reads" not in ended.stderr
    run = the_run()
    assert (run.info.run_name, run.data.tags["mlflow.note.content"]) == ("named", "why")
    assert (run.data.tags["fold"], run.data.tags["kind"]) == ("1", "test")


def test_the_supervisor_is_small(start_python, script):
    """Neither the supervisor nor a job without MLflow imports MLflow."""
    path = script("import os; print('pids', os.getppid(), os.getpid(), flush=True); input()")
    process = start_python("-m", "autogen_team", "run", path, stdin=subprocess.PIPE, fresh=True)
    supervisor, job = process.wait_for("pids").split()[1:]

    def resident(pid: str) -> int:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    plain = subprocess.run(
        [sys.executable, "-c", "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"],
        capture_output=True,
        check=True,
    )
    assert resident(supervisor) < 60_000
    assert resident(job) < int(plain.stdout) + 5_000
    assert process.finish("go on\n")[0] == 0


@pytest.fixture
def transcript(tmp_path):
    """Return a transcript of a known run."""
    made = Transcript()
    made.belongs_to("a", tmp_path, masked=True)
    yield made
    made.close()


def kept(folder: Path) -> str:
    """Return the content of all files of the run's transcript."""
    return "".join(path.read_text() for path in sorted((folder / "logs" / "a").glob("*.log")))


def test_only_the_last_state_of_a_progress_bar_is_stored(transcript, tmp_path):
    """Only the last state is stored, with any number of updates, with or without a newline."""
    for percent in range(1000):
        transcript.add("stderr", f"\r{percent}|####|".encode())
    transcript.add("stderr", b"\nnext\n\r50%\r100%\r\n")
    transcript.close()

    assert kept(tmp_path) == "999|####|\nnext\n100%\n"


def test_an_endless_progress_bar_uses_little_memory(transcript, tmp_path):
    """A line without an end is cut as well."""
    for _ in range(200):
        transcript.add("stderr", b"\r" + b"#" * 1000)
    transcript.add("stdout", b"x" * 200_000)
    assert all(len(line._text) < 70_000 for line in transcript._pending.values())
    transcript.close()

    text = kept(tmp_path)
    assert text.count("x") == 200_000
    assert text.count("#") == 1000


def test_a_line_without_an_end_is_cut_after_a_bar_too(transcript, tmp_path):
    """Text drawn over a finished bar can be of any length."""
    for data in [b"50%\r", *[b"x" * 65_536] * 20]:
        transcript.add("stdout", data)
        assert all(len(line._text) < 140_000 for line in transcript._pending.values())
    transcript.close()

    assert kept(tmp_path).count("x") == 20 * 65_536


def test_characters_that_come_in_pieces_are_whole(transcript, tmp_path):
    """A read may end inside a character."""
    for byte in "größer 🎉\n".encode():
        transcript.add("stdout", bytes([byte]))
    transcript.close()

    assert kept(tmp_path) == "größer 🎉\n"


def test_titles_links_and_cursor_movements_are_removed(transcript, tmp_path):
    """Escape sequences for terminals are not stored."""
    transcript.add("stdout", b"\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x1b[2K\x1b[1Aup\x07\n\n")
    transcript.close()

    assert kept(tmp_path) == "link up\n\n"


def test_lines_before_the_run_is_known_are_stored_too(tmp_path):
    """Lines wait in memory for the run; if there is none, they are dropped."""
    waiting = Transcript()
    waiting.add("stderr", b"early\n")
    assert not (tmp_path / "logs").exists()
    waiting.belongs_to("a", tmp_path, masked=False)
    waiting.add("stderr", b"token=abcdefgh12345678\n")
    waiting.close()

    assert kept(tmp_path) == "early\ntoken=abcdefgh12345678\n"
