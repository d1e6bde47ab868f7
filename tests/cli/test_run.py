"""`autogen-team run`."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from autogen_team.cli import _summary
from autogen_team.io.services import MlflowService

pytestmark = pytest.mark.usefixtures("forked_children")

RUN = ("-m", "autogen_team", "run")


@pytest.fixture(autouse=True)
def ready(store_uri, monkeypatch):
    """Provide a store with all tables, and print alerts on the console."""
    monkeypatch.setenv("AUTOGEN_TEAM_ALERTS_ENABLE", "false")


@pytest.fixture
def script():
    """Return a function that writes a script."""

    def write(text: str, path: str = "job.py") -> str:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
        return path

    return write


def runs(experiment="autogen_team"):
    """Return the runs of the store in the working folder."""
    client = MlflowService(tracking_uri=f"sqlite:///{Path('mlflow.db').absolute()}").client()
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_a_script_runs_in_a_run_named_after_it(run_python, script):
    """Plain MLflow calls log to that run."""
    path = script("import mlflow; mlflow.log_metric('loss', 0.5); print('output')")

    status, out, err = run_python(*RUN, path)

    assert (status, out) == (0, "output\n"), err
    (run,) = runs()
    assert (run.info.run_name, run.info.status, run.data.metrics) == ("job.py", "FINISHED", {"loss": 0.5})


def test_a_module_runs_as_python_would_run_it(run_python, script):
    """The module is found in the working folder, and gets its own arguments."""
    script("", "package/__init__.py")
    script("import sys; print(__name__, __package__, sys.argv[1:], sys.argv[0] == __file__)", "package/train.py")

    status, out, err = run_python(*RUN, "-m", "package.train", "--epochs", "3", "-n", "x")

    assert status == 0, err
    assert out == "__main__ package ['--epochs', '3', '-n', 'x'] True\n"
    assert runs()[0].info.run_name == "package.train"


@pytest.mark.parametrize(("options", "are_sampled"), [([], True), (["--no-system-metrics"], False)])
def test_system_metrics_can_be_left_out(start_python, script, wait_until, store_uri, options, are_sampled):
    """A script cannot disable them: its own run joins the command's run, which samples already."""
    often = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.2", "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING": "1"}
    job = start_python(*RUN, *options, script("input()"), stdin=subprocess.PIPE, MLFLOW_TRACKING_URI=store_uri, **often)
    client = mlflow.MlflowClient(store_uri)

    def sampled() -> list[bool]:
        return [any(key.startswith("system/") for key in run.data.metrics) for run in client.search_runs(["1"])]

    wait_until(lambda: any(sampled()) if are_sampled else sampled())
    status, _, err = job.finish("\n")

    assert status == 0, err
    assert sampled() == [are_sampled]


@pytest.mark.slow
def test_a_script_sees_itself_as_python_would_show_it(run_python, script):
    """The script's name, arguments and neighbouring modules are as in Python."""
    script("value = 7", "folder/neighbour.py")
    path = script(
        "import sys, neighbour\nif __name__ == '__main__': print(sys.argv, neighbour.value, __file__)", "folder/job.py"
    )

    _, out, err = run_python(*RUN, path, "--name", "mine", "-h")

    assert out == f"['folder/job.py', '--name', 'mine', '-h'] 7 {Path(path).absolute()}\n", err
    assert runs()[0].info.run_name == "job.py"


def test_options_name_and_describe_the_run(run_python, script):
    """Options precede the target."""
    options = ["--name", "mine", "--experiment", "digits", "--tag", "fold=1", "-t", "a=b=c", "--description", "why"]

    status, _, err = run_python(*RUN, *options, script("pass"))

    assert status == 0, err
    (run,) = runs("digits")
    assert run.info.run_name == "mine"
    assert {key: run.data.tags[key] for key in ("fold", "a", "mlflow.note.content")} == {
        "fold": "1",
        "a": "b=c",
        "mlflow.note.content": "why",
    }


@pytest.mark.parametrize(
    ("body", "status", "recorded"),
    [
        ("import sys; sys.exit(0)", 0, "FINISHED"),
        ("import sys; sys.exit(3)", 3, "FAILED"),
        ("import sys; sys.exit('no data')", 1, "FAILED"),
        ("raise ValueError('boom')", 1, "FAILED"),
        ("raise KeyboardInterrupt", 130, "KILLED"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(60)", 143, "KILLED"),
    ],
)
def test_the_command_ends_like_the_target(run_python, script, body, status, recorded):
    """Exit status and run agree."""
    code, _, err = run_python(*RUN, script(body))

    assert code == status, err
    assert runs()[0].info.status == recorded


@pytest.mark.slow
def test_the_message_of_an_exit_is_printed(run_python, script):
    """The text is printed as by Python."""
    _, _, err = run_python(*RUN, script("import sys; sys.exit('no data')"))

    assert "\nno data\n" in err


def test_a_traceback_begins_with_the_target(run_python, script):
    """Our frames are left out."""
    path = script("def work():\n    raise ValueError('boom')\nwork()")

    _, _, err = run_python(*RUN, path, NO_COLOR="1")

    assert err.count("ValueError: boom") == 3  # the traceback, the alert and the summary
    assert "runpy" not in err
    assert "autogen_team/cli" not in err


@pytest.mark.slow
def test_a_signal_from_outside_kills_the_run(start_python, script):
    """A scheduler sends such a signal, for example."""
    process = start_python(*RUN, script("import time; print('ready', flush=True); time.sleep(600)"))
    process.wait_for("ready")
    process.send(signal.SIGTERM)
    status, _, err = process.finish()

    assert status == 143, err
    assert runs()[0].info.status == "KILLED"


def test_a_context_inside_the_target_joins_the_run(run_python, script):
    """The inner context has the command line's settings; its first run is the command's, and no line is doubled."""
    path = script(
        "from autogen_team import GlobalContext\n"
        "with GlobalContext() as context, context.run('mine', tags={'fold': 1}):\n"
        "    context.logger.debug('one line')\n"
    )

    status, _, err = run_python(*RUN, "--log-level", "debug", "--experiment", "digits", path)

    assert status == 0, err
    assert err.count("one line") == 1
    (run,) = runs("digits")
    assert (run.info.status, run.data.tags["fold"]) == ("FINISHED", "1")


def test_plain_mlflow_inside_the_target_joins_the_run(run_python, script):
    """A script without our package need not change."""
    path = script("import mlflow\nwith mlflow.start_run(run_name='mine'):\n    mlflow.log_param('a', 1)\n")

    status, _, err = run_python(*RUN, path)

    assert status == 0, err
    (run,) = runs()
    assert (run.info.status, run.data.params) == ("FINISHED", {"a": "1"})


@pytest.mark.slow
def test_the_summary_says_what_was_recorded_and_how_to_look_at_it(run_python, script):
    """The summary goes to stderr, because stdout belongs to the target."""
    path = script("import mlflow; mlflow.log_param('epochs', 3); mlflow.log_metric('loss', 0.5)")

    _, out, err = run_python(*RUN, path)

    assert out == ""
    rows = {line.split("  ")[0]: line for line in err.splitlines()}
    assert rows["run"].split()[1] == "job.py"
    assert "FINISHED after" in rows["status"]
    assert "1: epochs" in rows["parameters"]
    assert "1: loss 0.5" in rows["metrics"]
    assert rows["look at it"].endswith("autogen-team ui")


@pytest.mark.parametrize("body", ["pass", "import os; os.kill(os.getpid(), 9)"])
def test_a_store_that_is_not_the_default_is_in_the_suggested_command(run_python, script, body):
    """The store is given also if the supervisor prints the command."""
    other = f"sqlite:///{Path(shutil.copy('mlflow.db', 'm.db')).absolute()}"

    _, _, err = run_python(*RUN, "--tracking-uri", other, script(body))

    assert err.splitlines()[-1].endswith(f"autogen-team ui --tracking-uri {other}")


def test_on_a_server_the_summary_has_the_link(run_python, script, mlflow_server):
    """The link leads to the run's page."""
    _, out, err = run_python(*RUN, "--tracking-uri", mlflow_server, script("print('x')"))

    assert out == "x\n"
    assert f"{mlflow_server}/#/experiments/" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "script 'nowhere.py' not found"),
        (["-m", "no.such.module"], "no module named 'no.such.module'"),
        (["-m"], "-m needs the name of a module"),
        (["--experimnt", "x", "job.py"], "unknown option '--experimnt'"),
        (["--tag", "fold", "job.py"], "--tag takes KEY=VALUE, not 'fold'"),
        (["--log-level", "loud", "job.py"], "loud"),
        (["--set", "alerts.timeout=soon", "job.py"], "AlertsService.timeout is 'soon'"),
    ],
)
def test_an_invalid_command_is_one_line_and_status_2(run_python, script, arguments, message):
    """No target is run, and no run is created."""
    script("print('must not run')")

    status, out, err = run_python(*RUN, *arguments)

    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_a_context_that_cannot_start_is_status_125(run_python, script, free_port):
    """As with `env` and `timeout`, 125 means that the command itself failed."""
    uri = f"http://127.0.0.1:{free_port()}"

    status, out, err = run_python(*RUN, "--tracking-uri", uri, script("print('must not run')"))

    assert (status, out) == (125, "")
    assert uri in err
    assert "Traceback" not in err


def test_a_run_that_cannot_be_opened_is_status_125(run_python, script, store_uri):
    """The error is reported like others that prevent the target from running."""
    options = ["--tracking-uri", store_uri]

    status, out, err = run_python(*RUN, *options, script("print('must not run')"), MLFLOW_RUN_ID="abc")

    assert (status, out) == (125, "")
    assert "error: the run cannot be opened: Run with id=abc not found" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_terminal_stays_a_terminal(script):
    """The target can print colours and progress bars."""
    path = script("import sys; print(sys.stdout.isatty(), sys.stderr.isatty())")
    shown = bytearray()

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 65536)
        shown.extend(data)
        return data

    status = pty.spawn([sys.executable, *RUN, path], read)

    assert os.waitstatus_to_exitcode(status) == 0
    assert b"True True" in shown
    assert b"FINISHED" in shown


@pytest.mark.slow
def test_logging_and_warnings_of_the_script_are_in_the_log(run_python, script):
    """`basicConfig` keeps its effect, in our format and without doubled lines; so do warnings."""
    path = script(
        "import logging, warnings\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "logging.getLogger('mine').info('a record')\n"
        "warnings.warn('careful')\n"
    )

    _, _, err = run_python(*RUN, path)

    lines = [line for line in err.splitlines() if "a record" in line or "careful" in line]
    assert [line.partition(" | ")[2].split() for line in lines] == [
        ["INFO", "|", "mine:<module>:3", "-", "a", "record"],
        ["WARNING", "|", "py.warnings:<module>:4", "-", "UserWarning:", "careful"],
    ]


@pytest.mark.slow
def test_a_script_that_changes_folders_keeps_its_store(run_python, script, tmp_path):
    """The script can still open its own file."""
    path = script("import os, mlflow; os.chdir(os.environ['ELSEWHERE']); mlflow.log_metric('a', 1); open(__file__)")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    status, _, err = run_python(*RUN, path, ELSEWHERE=str(elsewhere))

    assert status == 0, err
    assert list(elsewhere.iterdir()) == []
    assert runs()[0].data.metrics == {"a": 1.0}


@pytest.mark.slow
def test_threads_of_the_script_belong_to_its_run(run_python, script):
    """Python and the run wait for threads; functions that they pickle are found."""
    path = script(
        "import threading, time, pickle, mlflow\n"
        "def work():\n"
        "    time.sleep(0.5); pickle.dumps(work); mlflow.MlflowClient().log_metric(run_id, 'late', 1)\n"
        "run_id = mlflow.active_run().info.run_id\n"
        "threading.Thread(target=work).start()\n"
    )

    status, _, err = run_python(*RUN, path)

    assert status == 0, err
    (run,) = runs()
    assert run.data.metrics == {"late": 1.0}
    assert run.info.end_time - run.info.start_time >= 500


AT_WORK = """
import mlflow, sys, threading, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
run_id = mlflow.active_run().info.run_id
def work():
    time.sleep(1)
    mlflow.MlflowClient().log_metric(run_id, "late", 1)
"""
LEFT_AT_WORK = {
    "a thread that a thread starts": "threading.Timer(0.2, threading.Thread(target=work).start).start()",
    "a task of an executor": "pool = ThreadPoolExecutor(1); pool.submit(work)",
    "a thread of a task": "pool = ThreadPoolExecutor(2); pool.submit(threading.Thread(target=work).start)",
    "a task of another process": "pool = ProcessPoolExecutor(1); pool.submit(work)",
    "a thread beside an exception": "threading.Thread(target=work).start(); raise ValueError('boom')",
    "a thread beside an exit": "threading.Thread(target=work).start(); sys.exit(1)",
    "a task beside idle executors": "pool = ThreadPoolExecutor(4); list(pool.map(abs, range(8))); pool.submit(work)",
}
if sys.version_info >= (3, 12):  # Python itself starts no thread once the main thread has ended
    del LEFT_AT_WORK["a thread that a thread starts"]


@pytest.mark.slow
@pytest.mark.parametrize("body", LEFT_AT_WORK.values(), ids=LEFT_AT_WORK)
def test_unfinished_work_of_the_script_belongs_to_its_run(run_python, script, body):
    """The run waits for all work that Python waits for; workers that only wait for work do not delay it."""
    status, _, err = run_python(*RUN, script(f"{AT_WORK}{body}"))

    (run,) = runs()
    assert run.data.metrics == {"late": 1.0}, err
    assert run.info.end_time - run.info.start_time >= 1000
    assert run.info.status == ("FAILED" if status else "FINISHED")


@pytest.mark.parametrize("enable", ["true", "false"])
def test_the_captured_output_of_a_failing_job_contains_no_alert(script, run_python, enable):
    """With `x=$(autogen-team run ...)`, the alert is on stderr, once, without a traceback or a note about a desktop."""
    path = script("print('42'); raise ValueError('bad shape')")
    environment = {"DBUS_SESSION_BUS_ADDRESS": "", "XDG_RUNTIME_DIR": "", "AUTOGEN_TEAM_ALERTS_ENABLE": enable}

    status, out, err = run_python(*RUN, path, **environment)

    assert (status, out) == (1, "42\n")
    assert err.count("[autogen_team] job.py failed: after ") == 1
    assert "    ValueError: bad shape\n" in err
    assert err.count("Traceback (most recent call last)") == 1
    assert "session bus" not in err


@pytest.mark.slow
def test_a_summary_that_cannot_be_printed_changes_nothing(script):
    """The exit status is that of the target."""
    path = script("import sys; sys.exit(3)")
    command = [sys.executable, *RUN, path]

    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stderr=full, stdout=subprocess.PIPE, text=True, check=False)

    assert (ended.returncode, ended.stdout) == (3, "")


def test_the_password_of_a_database_is_not_shown():
    """The printed command refers to the environment instead."""
    service = MlflowService(tracking_uri="postgresql://bob:hunter2@db/runs")

    shown = _summary.command_to_look(service, _summary.Prompt.here())

    assert "hunter2" not in shown
    assert '"$MLFLOW_TRACKING_URI"' in shown


@pytest.mark.slow
def test_a_server_that_dies_meanwhile_does_not_delay_the_end(start_python, script, mlflow_server, free_port):
    """The end takes the configured time, where MLflow alone would retry for eight minutes; the rest is reported."""
    port = free_port()
    relay = start_python("-c", RELAY.format(port=port, target=mlflow_server.rpartition(":")[2]))
    relay.wait_for("ready")
    options = ["--tracking-uri", f"http://127.0.0.1:{port}", "--set", "mlflow.flush_timeout=1"]
    process = start_python(*RUN, *options, script("import mlflow; print('ready'); input()"), stdin=subprocess.PIPE)
    process.wait_for("ready")
    relay.popen.kill()
    begun = time.monotonic()
    status, _, err = process.finish("go on\n")

    assert time.monotonic() - begun < 60
    assert status == 0, err
    assert "were not delivered within 1 s" in err


RELAY = """
import asyncio
async def pipe(reader, writer):
    while data := await reader.read(65536):
        writer.write(data); await writer.drain()
    writer.close()
async def relay(reader, writer):
    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", {target})
    await asyncio.gather(pipe(reader, there_writer), pipe(there_reader, writer))
async def main():
    server = await asyncio.start_server(relay, "127.0.0.1", {port})
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
