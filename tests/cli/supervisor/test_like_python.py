"""Python itself runs the job: the job sees and ends the same as without us."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REASON = "autogen_team.exception"
LOOK = """
import sys
modules = sorted(set(sys.modules) - set(sys.builtin_module_names))
import atexit, json, os, signal, threading
print(json.dumps({
    "modules": modules,
    "argv": sys.argv, "path": sys.path, "flags": str(sys.flags), "options": sys._xoptions, "warnings": sys.warnoptions,
    "words": sys.orig_argv[1:], "name": __name__, "package": __package__, "file": globals().get("__file__"),
    "main": sorted(vars(sys.modules["__main__"])), "threads": [thread.name for thread in threading.enumerate()],
    "signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "descriptors": sorted(os.listdir("/proc/self/fd")), "folder": os.getcwd(), "hook": str(sys.excepthook),
    "environment": {
        name: value for name, value in os.environ.items() if "MLFLOW" not in name and name != "AUTOGEN_TEAM_SUPERVISED"
    },
}))
"""
TARGETS = {
    "script": ["folder/job.py", "--epochs", "3"],
    "module": ["-m", "folder.job", "-n", "x"],
    "module in one word": ["-mfolder.job"],
    "program": ["-c", LOOK, "-h"],
    "standard input": ["-", "a"],
    "folder": ["app", "--name"],
    "zip": ["app.pyz"],
}


@pytest.fixture
def targets(script):
    """Write a job that inspects its process, in each form that Python can run."""
    for folder in ("folder", "app"):
        Path(folder).mkdir()
    script("", "folder/__init__.py")
    script(LOOK, "folder/job.py")
    script(LOOK, "app/__main__.py")
    with zipfile.ZipFile("app.pyz", "w") as archive:
        archive.write("app/__main__.py", "__main__.py")


FLAGS = ["-O", "-B", "-X", "dev", "-W", "error::UserWarning", "-u"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [*(([], words) for words in TARGETS.values()), (FLAGS, TARGETS["script"])],
    ids=[*TARGETS, "script with flags"],
)
def test_a_job_sees_the_same_process_as_in_plain_python(targets, words, flags):
    """The modules, threads, descriptors, variables, hooks, signal handlers and flags are the same."""
    ours = [sys.executable, *flags, "-m", "autogen_team", "run", "--no-system-metrics", *words]
    plain, supervised = (
        subprocess.run(one, input=LOOK.encode(), capture_output=True, timeout=100, check=False)
        for one in ([sys.executable, *flags, *words], ours)
    )

    assert supervised.returncode == 0, supervised.stderr
    assert json.loads(supervised.stdout) == json.loads(plain.stdout)


ENDS = {
    "an exit with words": "import sys; sys.exit('no data')",
    "an exit past all handlers": "import os; os._exit(4)",
    "a cancelled task": "import asyncio; raise asyncio.CancelledError('stop')",
    "a BaseException of its own": "class Stop(BaseException): pass\nraise Stop('x')",
    "a generator's exit": "raise GeneratorExit",
    "an interrupt": "raise KeyboardInterrupt",
    "a recursion": "def down(): down()\ndown()",
    "a syntax error": "print('a'",
    "another program": "import os; os.execvp('sh', ['sh', '-c', 'echo other; exit 6'])",
    "a forked child that runs to the end too": "import os\nif os.fork(): os.wait()\nprint('both', flush=True)",
    "a daemon": (
        "import os\nif not os.fork():\n    os.setsid()\n    if not os.fork(): os.closerange(0, 256)\n    os._exit(0)\n"
        "os.wait()"
    ),
    "closed descriptors": "import os, sys; os.closerange(3, 256); print('closed'); sys.exit(5)",
    "closed streams": "import sys; sys.stdout.close(); sys.stderr.close()",
    "an import that fails": "import sys; sys.path.insert(0, '.'); import sklearn",
    "an exception hook of its own": "import sys\nsys.excepthook = lambda *_: print('mine')\nraise ValueError",
    "an exception in a thread": "import threading; threading.Thread(target=lambda: 1 / 0).start()",
    "a thread that watches the main one": (
        "import threading\ndef watch():\n    threading.main_thread().join(); print('stopped')\n"
        "threading.Thread(target=watch).start(); print('last line')"
    ),
    "other threads that are joined": (
        "import threading\nthreading.Thread(target=print, args=('w',)).start()\n"
        "[one.join() for one in threading.enumerate() if one is not threading.current_thread()]"
    ),
    "a class that a spawned worker returns": (
        "import multiprocessing as mp\nfrom dataclasses import dataclass\n@dataclass\nclass Score:\n    value: float\n"
        "def work(x): return Score(x)\nif __name__ == '__main__':\n"
        "    with mp.get_context('spawn').Pool(1) as pool: print(pool.map(work, [1.0]))"
    ),
    "a pool that works on": (
        "from concurrent.futures import ProcessPoolExecutor\ndef work(x): return x\nif __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1)\n"
        "    pool.submit(work, 1).add_done_callback(lambda f: print(f.exception() or f.result(), flush=True))"
    ),
    "an exit handler": (
        "import atexit, sys\n@atexit.register\ndef last():\n    import neighbour; print(sys.argv, neighbour.value)"
    ),
    "its own annotations": "def work(epochs: int): ...\nprint(work.__annotations__['epochs']('5') + 1)",
}


@pytest.mark.slow
@pytest.mark.parametrize("body", ENDS.values(), ids=ENDS)
def test_a_job_ends_as_in_plain_python(supervised, script, body):
    """Output, stderr and exit status are equal; there is one run and one summary."""
    Path("sklearn").mkdir()
    script("def load():\n    raise OSError('no such library')\nload()", "sklearn/__init__.py")
    script("value = 7", "neighbour.py")
    path = script(body)

    plain = subprocess.run([sys.executable, path], capture_output=True, timeout=100, check=False)
    ended = supervised("--no-system-metrics", "--alert-on", "never", path)

    status = plain.returncode if plain.returncode >= 0 else 128 - plain.returncode
    assert (ended.returncode, ended.stdout) == (status, plain.stdout), ended.stderr
    words = re.sub(rb"0x[0-9a-f]+", b"", plain.stderr)
    assert words in re.sub(rb"0x[0-9a-f]+", b"", ended.stderr)
    assert ended.stderr.count(b"look at it") == 1


def test_another_sitecustomize_runs_too(supervised, script, tmp_path):
    """A user's `sitecustomize` runs as in Python: with its own name and path, before the job."""
    patch = tmp_path / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(
        "import os, sys\nfound = __name__, __file__, os.environ['PYTHONPATH'], sys.path[0]\n"
    )
    path = script("import sitecustomize; print(sitecustomize.found)")
    environment = {**os.environ, "PYTHONPATH": str(patch)}

    ended = supervised(path, env=environment)

    plain = subprocess.run([sys.executable, path], capture_output=True, env=environment, check=True)
    assert ended.stdout == plain.stdout, ended.stderr


def test_an_interpreter_without_start_up_hooks_logs_to_the_run(script, the_run):
    """`-I` disables our start-up hook, so the run is passed in the environment, as for a command."""
    path = script("import mlflow\nwith mlflow.start_run():\n    mlflow.log_metric('loss', 0.5)")

    ended = subprocess.run(
        [sys.executable, "-I", "-m", "autogen_team", "run", path], capture_output=True, timeout=100, check=False
    )

    assert ended.returncode == 0, ended.stderr
    assert (the_run().info.status, the_run().data.metrics) == ("FINISHED", {"loss": 0.5})


def test_warnings_are_errors_only_for_the_job(script, the_run):
    """MLflow itself warns while it opens the run."""
    path = script("import warnings\ntry: warnings.warn('careful')\nexcept UserWarning: print('raised')")

    ended = subprocess.run(
        [sys.executable, "-m", "autogen_team", "run", path],
        capture_output=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        timeout=100,
        check=False,
    )

    assert (ended.returncode, ended.stdout) == (0, b"raised\n"), ended.stderr
    assert the_run().info.status == "FINISHED"


def test_a_package_that_cannot_be_imported_fails_like_any_job(supervised, script, the_run):
    """The package is not imported in advance: it runs once, with its own arguments."""
    Path("bad").mkdir()
    script("import sys\nprint(sys.argv[1:])\nimport no_such_library", "bad/__init__.py")
    script("print('trains')", "bad/train.py")

    ended = supervised("--no-system-metrics", "-m", "bad.train", "--epochs", "3")

    assert (ended.returncode, ended.stdout) == (1, b"['--epochs', '3']\n"), ended.stderr
    assert b"Traceback" in ended.stderr
    assert the_run().data.tags[REASON] == "ModuleNotFoundError: No module named 'no_such_library'"


def test_a_file_name_that_is_not_utf_8_is_accepted(supervised, the_run):
    """In the run's name, each invalid byte is a replacement character."""
    name = os.fsdecode(b"job-\xff.py")
    Path(name).write_text("import sys; print(len(sys.argv))")

    ended = supervised("--no-system-metrics", name, os.fsdecode(b"\xfe"))

    assert (ended.returncode, ended.stdout) == (0, b"2\n"), ended.stderr
    assert the_run().info.run_name == "job-\N{REPLACEMENT CHARACTER}.py"


def test_modules_beside_the_script_are_not_imported_by_mlflow(supervised, script):
    """MLflow imports `git`, and must not execute a script's neighbour of that name."""
    script("print('executed')", "git.py")

    ended = supervised("--no-system-metrics", script("print('job')"))

    assert ended.stdout == b"job\n", ended.stderr


@pytest.mark.parametrize("name", ["SIGXCPU", "SIGALRM", "SIGUSR2", "SIGRTMIN"])
def test_any_signal_reaches_the_job(start_python, script, name):
    """The job gets the signal once, and decides what to do."""
    body = (
        "import signal, sys, time\n"
        f"signal.signal(signal.{name}, lambda *_: (print('got', flush=True), sys.exit(7)))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05)\n"
    )
    process = start_python("-m", "autogen_team", "run", "--no-system-metrics", script(body))
    process.wait_for("ready")
    process.send(getattr(signal, name))
    status, out, err = process.finish()

    assert (status, out) == (7, "got\n"), err


def test_a_killed_supervisor_ends_a_job_that_ignores_sigterm(start_python, script, the_run, wait_until):
    """The job is killed in the end, because its user could no longer signal it."""
    body = (
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('pid', os.getpid(), flush=True)\ntime.sleep(600)"
    )
    process = start_python("-m", "autogen_team", "run", "--no-system-metrics", script(body))
    pid = int(process.wait_for("pid").split()[1])
    process.popen.kill()

    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    wait_until(lambda: the_run().info.status == "KILLED")
    assert the_run().data.tags[REASON].startswith("SIGKILL")


SHELL = {
    "a file at a descriptor": ("{run} job.py 3< words.txt", "import os; print(os.read(3, 5))", b"b'hello'\n"),
    "the output of another command": ("{run} -- cat <(echo one)", "", b"one\n"),
    "a script from another command": ("{run} <(echo 'print(7)')", "", b"7\n"),
    "both streams in one": (
        "{run} job.py 2>&1 | grep '^[oe][0-9]'",
        "import os\nfor i in range(100): os.write(1, b'o%d\\n' % i); os.write(2, b'e%d\\n' % i)",
        b"".join(b"o%d\ne%d\n" % (i, i) for i in range(100)),
    ),
}


@pytest.mark.parametrize(("command", "body", "wanted"), SHELL.values(), ids=SHELL)
def test_redirections_of_the_shell_reach_the_job(script, command, body, wanted):
    """The job gets the shell's descriptors and the order of its streams."""
    script("hello", "words.txt")
    script(body)
    run = f"{sys.executable} -m autogen_team run --no-system-metrics"

    ended = subprocess.run(["bash", "-c", command.format(run=run)], capture_output=True, timeout=100, check=False)

    assert ended.stdout == wanted, ended.stderr
