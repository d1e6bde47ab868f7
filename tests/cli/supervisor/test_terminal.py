"""A job in a terminal gets a terminal, whose keys have their usual meaning."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REASON = "autogen_team.exception"


def test_a_terminal_stays_a_terminal(screen, script, the_output):
    """All three streams and /dev/tty are terminals of the same size."""
    path = script(
        "import os, sys\n"
        "print([stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)])\n"
        "print(os.get_terminal_size().columns, open('/dev/tty').isatty())\n"
        "print(input('name? ').upper())\n"
    )
    job = screen("--name", "x", path)
    job.wait_for("name? ")
    job.type("anna\r")

    assert job.finish() == 0
    assert b"[True, True, True]\r\n" in job.shown
    assert b"ANNA\r\n" in job.shown
    assert b"name? anna\r\n" in job.shown  # echoed once
    assert "ANNA" in the_output()


def test_a_redirected_stream_is_not_a_terminal(script, the_output):
    """With `2> errors`, only stdout is a terminal, for example."""
    path = script("import sys; print(sys.stdout.isatty(), sys.stderr.isatty()); print('words', file=sys.stderr)")
    command = f"{sys.executable} -m autogen_team run {path} 2> errors"
    shown = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, timeout=60, stdin=subprocess.DEVNULL, check=False
    )

    assert b"True False\r\n" in shown.stdout
    assert "words\n" in Path("errors").read_text()
    assert "words" in the_output()


def test_ctrl_c_interrupts_the_job_once(screen, script, the_run):
    """The key goes to the job's terminal only."""
    path = script(
        "import time\n"
        "try: print('go' + '!', flush=True); time.sleep(600)\n"
        "except KeyboardInterrupt: print('once', flush=True); time.sleep(0.5); raise\n"
    )
    job = screen(path)
    job.wait_for("go!")
    job.type("\x03")

    assert job.finish() in (130, -signal.SIGINT)  # a shell shows 130 for both
    assert job.shown.count(b"once") == 1
    assert (the_run().info.status, the_run().data.tags[REASON]) == ("KILLED", "SIGINT")


def test_ctrl_c_interrupts_a_command_too(screen, the_run):
    """The status is the one that a shell would show."""
    job = screen("--", "sh", "-c", "echo waiting; read line")  # dash ignores signals while it starts a program
    job.wait_for("waiting")
    job.type("\x03")

    assert job.finish() in (130, -signal.SIGINT)  # a shell shows 130 for both
    assert the_run().info.status == "KILLED"


SHELL = """
import os, signal, subprocess, sys
job = subprocess.Popen(sys.argv[1:], process_group=0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
os.tcsetpgrp(0, job.pid)
stopped = os.WIFSTOPPED(os.waitpid(job.pid, os.WUNTRACED)[1])
os.tcsetpgrp(0, os.getpgrp())
print("STOPPED", stopped, input("$ "), flush=True)
os.tcsetpgrp(0, job.pid)
os.killpg(job.pid, signal.SIGCONT)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(job.pid, 0)[1]))
"""


def test_ctrl_z_stops_the_job_and_us(terminal_of, script, wait_until):
    """Ctrl-Z stops the supervisor as well, and a shell that continues it continues the job."""
    path = script("import os\nprint('pid', os.getpid(), 'go!', flush=True)\nprint('got', input())\n")
    job = terminal_of(sys.executable, "-c", SHELL, sys.executable, "-m", "autogen_team", "run", path)
    job.wait_for("go!")
    pid = int(job.shown.split(b"pid ")[1].split()[0])
    job.type("\x1a")
    job.wait_for("$ ")
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    job.type("fg\r")
    job.wait_for("STOPPED True fg")
    job.type("words\r")
    assert job.finish() == 0
    assert b"got words" in job.shown


def test_the_size_follows_the_window(screen, script):
    """Bars and tables can be redrawn."""
    path = script(
        "import os, signal\n"
        "def show(*_): os.write(1, b'columns %d' % os.get_terminal_size().columns)\n"  # print() is not reentrant
        "signal.signal(signal.SIGWINCH, show)\n"
        "print('ready', flush=True)\n"
        "input()\n"
    )
    job = screen(path)
    job.wait_for("ready")
    subprocess.run(["stty", "-F", f"/proc/{job.pid}/fd/0", "cols", "77"], check=True)
    os.kill(job.pid, signal.SIGWINCH)
    job.wait_for("columns 77")
    job.type("\r")

    assert job.finish() == 0


@pytest.mark.parametrize("end", ["exit 0", "kill -9 $$"])
def test_the_terminal_is_restored(end):
    """The terminal's settings are restored, whatever the job has changed."""
    command = f"stty -g; {sys.executable} -m autogen_team run -- sh -c 'stty raw -echo; {end}'; echo; stty -g"
    shown = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, timeout=60, stdin=subprocess.DEVNULL, check=False
    ).stdout.decode()
    states = [line.strip() for line in shown.splitlines() if line.count(":") > 20]
    assert len(states) == 2
    assert states[0] == states[1]


@pytest.fixture
def shell(terminal_of):
    """Return a shell with job control in a new terminal."""
    shell = terminal_of("bash", "--norc", "--noprofile", "-i")
    shell.type(f"PS1='<rea''dy>'; r='{sys.executable} -m autogen_team run --no-system-metrics'\r")
    shell.wait_for("<ready>")
    shell.shown = b""
    return shell


@pytest.mark.parametrize("command", ["$r job.py > log 2>&1", "$r --no-keep-output job.py", "$r job.py"])
def test_ctrl_c_reaches_children_of_the_job(shell, script, command):
    """The foreground group gets the key, also with redirected output; with `os.system` only the child handles it."""
    # dash ignores signals while it starts a program, so the built-in `read` waits here
    script("import os\nos.system('echo go\\'\\'! > /dev/tty; read line < /dev/tty')\nopen('after', 'w').close()")
    shell.type(f"{command}; echo status $?\r")
    shell.wait_for("go!")
    shell.shown = b""
    shell.type("\x03")
    shell.wait_for("<ready>")

    assert Path("after").exists()


def test_a_job_with_redirected_output_can_prompt_at_the_terminal(shell, script):
    """ssh, sudo and getpass ask in this way."""
    script("import getpass; print(len(getpass.getpass('word? ')))")
    shell.type("$r job.py > log 2> errors; echo do''ne\r")
    shell.wait_for("word? ")
    shell.type("secret\r")
    shell.wait_for("done")

    assert Path("log").read_text() == "6\n", Path("errors").read_text()
    assert b"secret" not in shell.shown


@pytest.mark.parametrize("more", ["", "> log"])
def test_a_job_in_the_background_gets_no_key(shell, script, wait_until, more):
    """In the background the keys go to the shell, in the foreground to the job."""
    script("open('started', 'w').close()\nprint('got', input(), flush=True)\nopen('got', 'w').close()")
    shell.type(f"$r job.py {more} 2> errors &\r")
    before = b""
    while not Path("started").exists():
        shell.type("\r")
        shell.wait_for("<ready>")
        before, shell.shown = before + shell.shown, b""
    for word in ("one", "two"):
        shell.type(f"echo typed ''{word}\r")
        shell.wait_for(f"typed {word}")
    assert not Path("got").exists()

    if more:  # it shares our terminal, so the system stops it
        while b"Stopped" not in before + shell.shown:  # the shell reports it before a prompt
            shell.shown = b""
            shell.type("\r")
            shell.wait_for("<ready>")
    shell.shown = b""
    shell.type("fg\r")
    shell.wait_for("$r job.py")
    shell.type("words\r")
    wait_until(Path("got").exists)


def test_unread_input_does_not_delay_ctrl_c(screen, script, the_run):
    """Ctrl-C does not wait until the pasted text is read."""
    job = screen("--no-system-metrics", script("import time\nprint('go' + '!', flush=True)\ntime.sleep(600)"))
    job.wait_for("go!")
    for _ in range(40):
        job.type("x" * 500 + "\r")
    job.type("\x03")

    assert job.finish() in (130, -signal.SIGINT)
    assert the_run().info.status == "KILLED"
