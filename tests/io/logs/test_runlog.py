"""The log of a run: on disk at once, uploaded soon and at the end of the run, without blocking the job."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time

import mlflow
import pytest
from loguru import logger

from autogen_team._logs import pipeline, runlog, upload
from autogen_team.io.services import MlflowService


@pytest.fixture
def folder(tmp_path):
    """Return the folder of run logs."""
    return tmp_path / "state" / "logs"


def name_of(pid=None):
    """Return the file name of the log of a process."""
    return f"{socket.gethostname()}-{pid or os.getpid()}.log"


def test_the_lines_of_a_run_are_in_its_artifacts(start, open_run, wait_until):
    """The artifacts have the lines between the run's start and end, already while it runs."""
    start(run_log=True)
    logger.info("before")
    run = open_run()
    logger.info("during")
    wait_until(lambda: run.log == "INFO|during\n")
    logger.info("later")
    run.end()
    logger.info("after")
    assert run.log == "INFO|during\nINFO|later\n"
    assert {name for name, _ in run.brought} == {f"logs/{name_of()}"}


def test_a_line_is_on_disk_at_once(start, open_run, folder):
    """A killed process leaves its log, in a file that only the user can read."""
    start(run_log=True)
    run = open_run()
    logger.info("acknowledged")
    path = folder / run.job_run.run_id / name_of()
    assert path.read_text() == "INFO|acknowledged\n"
    assert [stat.S_IMODE(it.stat().st_mode) for it in (folder, path.parent, path)] == [0o700, 0o700, 0o600]
    run.end()


def test_a_line_while_the_run_ends_is_dropped_silently(start, open_run, caplog):
    """A thread may have found the run open just before it ended."""
    start(run_log=True)
    run = open_run()
    logger.info("hello")
    (log,) = pipeline._run_logs._open
    run.end()
    log.write(b"late\n")

    assert (run.log, caplog.text) == ("INFO|hello\n", "")


def test_an_uploaded_log_is_removed_from_the_disk(start, open_run, folder):
    """Uploaded files are removed, so the state folder does not grow."""
    start(run_log=True)
    run = open_run()
    logger.info("hello")
    run.end()
    assert list(folder.iterdir()) == []


def test_a_run_without_a_line_has_no_log(start, open_run):
    """A run without lines has neither a file nor a folder."""
    start(run_log=True)
    run = open_run()
    run.end()
    assert run.brought == []


def test_the_job_itself_uploads_nothing(start, open_run):
    """Uploads run on another thread, because a hanging store would block the job."""
    start(run_log=True)
    run = open_run()
    logger.info("hello")
    run.end()
    assert run.brought != []
    assert threading.current_thread() not in run.threads


def test_the_run_log_can_be_disabled(start, open_run, folder):
    """`run_log=False` disables it."""
    start(run_log=False)
    run = open_run()
    logger.info("hello")
    run.end()
    assert (run.brought, folder.exists()) == ([], False)


def test_the_log_of_a_failed_run_says_why(start, open_run):
    """The traceback is included; elsewhere the exception is logged only after the run is closed."""
    start(run_log=True)
    run = open_run()
    try:
        raise ValueError("bad shape")
    except ValueError as error:
        run.end("FAILED", "ValueError: bad shape", error)
    assert run.log.startswith("ERROR|the run train ended as FAILED: ValueError: bad shape\n")
    assert "Traceback (most recent call last):" in run.log


def test_the_log_of_a_run_has_the_format_of_the_sink(start, open_run, strict, monkeypatch):
    """The log of a run is JSON, or text without colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    start(run_log=True, serialize=True)
    run = open_run("1")
    logger.info("json")
    run.end("KILLED", "SIGTERM")
    assert [strict(line)["message"] for line in run.log.splitlines()] == [
        "json",
        "the run train ended as KILLED: SIGTERM",
    ]
    start(run_log=True, format="<green>{message}</green>")
    run = open_run("2")
    logger.info("text")
    logger.opt(raw=True).info("raw\n")
    run.end()
    assert run.log == "text\nraw\n"


def test_lines_that_the_console_of_a_rank_does_not_show_are_in_the_log(start, open_run, capsys, monkeypatch):
    """Only the console of a rank is restricted."""
    monkeypatch.setenv("RANK", "1")
    start(run_log=True)
    run = open_run()
    logger.info("hello")
    logger.opt(raw=True).info("raw\n")
    run.end()
    assert (run.log, capsys.readouterr().err) == ("INFO|hello\nraw\n", "")


def test_the_latest_start_writes_the_log_of_the_run(start, open_run, tmp_path):
    """With two services only the latest writes the run's log; after its stop the other one continues."""
    start(run_log=True, format="outer {message}")
    stop = start(run_log=True, format="inner {message}", sink=str(tmp_path / "job.log"))
    run = open_run()
    logger.info("1")
    stop()
    logger.info("2")
    run.end()
    assert run.log == "inner 1\nouter 2\n"


@pytest.mark.parametrize("fields", [{"level": "ERROR", "run_log": True}, {"run_log": False}], ids=["less", "nothing"])
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_another_service_does_not_take_lines_from_the_log_of_the_run(start, open_run, tmp_path, fields, is_elsewhere):
    """A second service with a higher level or with `run_log=False` takes no lines from the run's log."""
    start(run_log=True, format="outer {message}")
    run = open_run()
    logger.info("1")
    stop = start(format="inner {message}", **fields, **({"sink": str(tmp_path / "job.log")} if is_elsewhere else {}))
    logger.info("2")
    stop()
    logger.info("3")
    run.end()

    assert run.log == "outer 1\nouter 2\nouter 3\n"


def test_a_stop_during_a_run_uploads_the_lines_so_far(start, open_run):
    """The service may stop before the run ends; the lines so far are uploaded."""
    stop = start(run_log=True)
    run = open_run()
    logger.info("hello")
    stop()
    assert run.log == "INFO|hello\n"
    run.end()
    assert run.log == "INFO|hello\n"


def in_thread(function):
    """Run a function in a new thread."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_threads_without_a_run_log_to_the_run_of_the_job(start, open_run):
    """Threads of data loaders log to the job's run, for example."""
    start(run_log=True)
    run = open_run()
    in_thread(lambda: logger.info("from a thread"))
    run.end()
    assert run.log == "INFO|from a thread\n"


def test_a_nested_run_logs_to_its_parent_too(start, open_run):
    """The log of a run includes the lines of nested runs."""
    start(run_log=True)
    outer = open_run("outer")
    inner = open_run("inner")
    logger.info("inside")
    inner.end()
    logger.info("outside")
    outer.end()
    assert (inner.log, outer.log) == ("INFO|inside\n", "INFO|inside\nINFO|outside\n")


def test_runs_of_sibling_threads_do_not_mix(start, open_run):
    """Each thread's run has its own lines; the run of the main thread has all."""
    start(run_log=True)
    parent = open_run("parent")
    siblings = {}
    both_open = threading.Barrier(2, timeout=30)

    def work(name):
        siblings[name] = open_run(name)
        both_open.wait()
        logger.info(name)
        both_open.wait()
        siblings[name].end()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parent.end()
    assert (siblings["a"].log, siblings["b"].log) == ("INFO|a\n", "INFO|b\n")
    assert sorted(parent.log.splitlines()) == ["INFO|a", "INFO|b"]


def test_a_store_that_hangs_delays_the_end_for_a_bounded_time(start, open_run, folder, monkeypatch, capsys):
    """The log stays on disk, and a warning says where."""
    monkeypatch.setattr(runlog, "PATIENCE", 0.2)
    start(run_log=True, intercept=True)
    run = open_run()
    run.gate.clear()
    logger.info("hello")
    began = time.monotonic()
    run.end()
    assert time.monotonic() - began < 10
    assert (folder / run.job_run.run_id / name_of()).read_text() == "INFO|hello\n"
    assert str(folder) in capsys.readouterr().err


def test_a_store_that_fails_is_reported_once_and_tried_again(start, open_run, wait_until, capsys, monkeypatch, folder):
    """Uploads are retried until one succeeds; the job is not affected."""
    monkeypatch.setattr(upload, "pause", lambda _: 0.01)
    start(run_log=True, intercept=True, level="WARNING")
    run = open_run()
    tries = []
    run.failure = OSError("no " + "answer")
    attach = run.attach

    def counted(path, where):
        tries.append(path)
        attach(path, where)

    run.attach = counted
    object.__setattr__(run.job_run, "attach", counted)
    logger.warning("hello")
    wait_until(lambda: len(tries) > 3)
    run.failure = None
    run.end()
    assert "WARNING|hello\n" in run.log
    assert capsys.readouterr().err.count("could not be uploaded: no answer") == 1
    assert list(folder.iterdir()) == []


def test_a_log_that_does_not_arrive_stays_on_disk(start, open_run, folder, capsys):
    """A file that could not be uploaded stays on disk."""
    start(run_log=True, intercept=True)
    run = open_run()
    run.failure = OSError("gone")
    logger.info("hello")
    run.end()
    assert "INFO|hello\n" in (folder / run.job_run.run_id / name_of()).read_text()
    assert "was not uploaded within" in capsys.readouterr().err


def test_a_state_folder_that_cannot_be_written_is_reported_once(start, open_run, tmp_path, capsys):
    """The job and its other sinks continue; the run log continues when the folder is writable."""
    (tmp_path / "state").write_text("a file in the way")
    start(run_log=True, intercept=True, format="{message}")
    run = open_run()
    for number in range(3):
        logger.info("line {}", number)
    err = capsys.readouterr().err

    assert err.count("cannot write the log") == 1
    (tmp_path / "state").unlink()
    logger.info("line 3")
    run.end()
    assert run.log.startswith("line 3\n3 lines of log could not be written here: ")


def test_a_forked_worker_has_its_own_file(start, open_run):
    """The parent uploads the worker's file."""
    start(run_log=True)
    run = open_run()
    logger.info("parent")
    child = os.fork()
    if not child:
        logger.info("child")
        os._exit(0)
    os.waitpid(child, 0)
    logger.info("parent again")
    run.end()
    assert {name for name, _ in run.brought} == {f"logs/{name_of()}", f"logs/{name_of(child)}"}
    assert (run.folder / "logs" / name_of(child)).read_text() == "INFO|child\n"
    assert (run.folder / "logs" / name_of()).read_text() == "INFO|parent\nINFO|parent again\n"


def test_a_forked_worker_that_ends_the_run_leaves_the_upload_to_its_parent(start, open_run):
    """Returning from the forked block also ends the child's context; only the parent uploads."""
    start(run_log=True)
    run = open_run()
    child = os.fork()
    if not child:
        run.end("KILLED", "SIGTERM")
        os._exit(0 if run.brought == [] else 1)
    assert os.waitpid(child, 0)[1] == 0
    run.end()
    assert "ended as KILLED" in run.log


def test_a_killed_process_leaves_every_line_on_disk(start_python, script, tmp_path):
    """A process killed by SIGKILL while it logs a lot loses no line."""
    body = """
folder = run_events.log_folder(Path(os.environ["AUTOGEN_TEAM_STATE_DIR"]), "0123")
run = run_events.Run("0123", "train", "digits", None, lambda path, folder: None, log_folder=folder)
run_events.run_started(run)
for number in range(1_000_000):
    logger.info("line {}", number)
    print(number, flush=True)
"""
    process = start_python(script(body, run_log=True, sink=os.devnull))
    process.wait_for("2000")
    process.send(signal.SIGKILL)
    process.finish()
    log = tmp_path / "state" / "logs" / "0123" / name_of(process.popen.pid)
    lines = log.read_text().splitlines()
    assert len(lines) > 2000
    assert lines == [f"INFO|line {number}" for number in range(len(lines))]


@pytest.fixture
def tracking(store_uri):
    """Start MLflow tracking on a local store."""
    with MlflowService(tracking_uri=store_uri, experiment_name="tests", autolog_disable=True) as service:
        yield service


def test_a_real_run_has_its_log(start, tracking):
    """With MLflow, the log is an artifact when the run is closed, and each line has its run id."""
    start(run_log=True, format="{message} {extra[run_name]} {extra[experiment]} {extra[run_id]}")
    with tracking.run_context(MlflowService.RunConfig(name="train")) as run:
        run_id = run.info.run_id
        logger.info("hello")
        in_thread(lambda: logger.info("thread"))
    failing = tracking.run_context(MlflowService.RunConfig(name="failing"))
    with pytest.raises(ValueError, match="bad shape"), failing as failed:
        raise ValueError("bad shape")
    assert [it.path for it in tracking.client().list_artifacts(run_id, "logs")] == [f"logs/{name_of()}"]
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/logs/{name_of()}") == (
        f"hello train tests {run_id}\nthread train tests {run_id}\n"
    )
    log = mlflow.artifacts.load_text(f"runs:/{failed.info.run_id}/logs/{name_of()}")
    assert "ended as FAILED: ValueError: bad shape" in log
    assert "Traceback" in log


def test_a_span_is_in_the_line(start, tracking, capsys):
    """A line has the trace and span ids only while the span is active."""
    start(format="[{extra[trace_id]}|{extra[span_id]}]")
    with mlflow.start_span("ask") as span:
        logger.info("inside")
    logger.info("outside")
    assert capsys.readouterr().err == f"[{span.trace_id}|{span.span_id}]\n[|]\n"
