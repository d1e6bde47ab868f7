"""Runs record how they ended."""

from __future__ import annotations

import logging
import signal
import threading

import mlflow
import pytest

from autogen_team._capture import lifecycle, session
from autogen_team._process import Undo, run_events
from autogen_team.io.services import MlflowService

pytestmark = pytest.mark.usefixtures("forked_children")

SCRIPT = """
import signal, sys, time
from autogen_team.io.services import MlflowService
service = MlflowService()
with service, service.run_context(MlflowService.RunConfig(name="train")) as run:
    print("run", run.info.run_id, flush=True)
    {body}
"""


def start(uri: str, experiment: str) -> Undo:
    """Start tracking, without autologging."""
    service = MlflowService(
        tracking_uri=uri, registry_uri=uri, experiment_name=experiment, autolog_disable=True, autolog_silent=True
    )
    return session.start(service).stop


@pytest.fixture
def started(store_uri):
    """Start tracking on a local store, and stop it after the test."""
    stop = start(store_uri, "tests")
    yield mlflow.MlflowClient()
    stop()


def open_run(name="train", **fields):
    """Open a run with only a name and the given fields."""
    return lifecycle.open_run(**{"name": name, "description": None, "tags": None, "log_system_metrics": None, **fields})


def test_a_run_has_its_name_description_and_tags_as_text(started):
    """A run has its name and description, and numbers and nested values as tags in text form."""
    with open_run(description="about", tags={"fold": 1, "grid": {"C": [1, 2]}}) as run:
        pass

    stored = started.get_run(run.info.run_id)
    assert stored.info.run_name == "train"
    assert stored.data.tags["mlflow.note.content"] == "about"
    assert (stored.data.tags["fold"], stored.data.tags["grid"]) == ("1", "{'C': [1, 2]}")


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("bad shape"), "FAILED", "ValueError: bad shape"),
        (SystemExit(3), "FAILED", "exit status 3"),
        (SystemExit(0), "FINISHED", None),
        (KeyboardInterrupt(), "KILLED", "SIGINT"),
    ],
    ids=repr,
)
def test_a_run_records_how_it_ended(started, error, status, reason):
    """A run has the status and reason of the exception that ended it, and the exception passes unchanged."""
    with pytest.raises(type(error)) as raised, open_run() as run:
        raise error

    assert raised.value is error
    stored = started.get_run(run.info.run_id)
    assert stored.info.status == status
    assert stored.info.end_time is not None
    assert stored.data.tags.get(run_events.EXCEPTION_TAG) == reason


def test_a_run_left_open_inside_is_closed_first(started):
    """A run that is left open inside another run is closed with it, with the same status."""
    with pytest.raises(ValueError, match="x"), open_run() as outer:
        inner = mlflow.start_run(nested=True)
        raise ValueError("x")

    assert mlflow.active_run() is None
    assert [started.get_run(run.info.run_id).info.status for run in (outer, inner)] == ["FAILED", "FAILED"]


def test_a_run_that_the_job_opened_before_stays_open(started):
    """A second run without `nested` is refused, as by plain MLflow, and the first stays open."""
    with mlflow.start_run() as mine:
        with pytest.raises(Exception, match="already active"), open_run():
            pytest.fail("the block must not run")

        assert mlflow.active_run().info.run_id == mine.info.run_id


def test_a_run_that_the_job_ended_itself_keeps_its_status(started):
    """A run that the job has ended itself keeps the status that the job gave."""
    with open_run() as run:
        mlflow.end_run("FAILED")

    assert started.get_run(run.info.run_id).info.status == "FAILED"


class Listener:
    """A listener that records its calls, and raises an exception if `fails`."""

    def __init__(self, *, fails: bool = False) -> None:
        self.heard = []
        self.fails = fails

    def _hear(self, *what):
        self.heard.append(what)
        if self.fails:
            raise RuntimeError("listener")

    def run_started(self, run):
        self._hear("started", run.name)

    def run_ending(self, run, end):
        self._hear("ending", end.status, mlflow.get_run(run.run_id).info.status)

    def run_ended(self, run, end):
        self._hear("ended", end.reason, mlflow.get_run(run.run_id).info.status)


def test_listeners_are_called_at_start_and_end(started, caplog):
    """Listeners are called at start, ending and end; one that fails harms neither the job nor others."""
    failing, listener = Listener(fails=True), Listener()
    undo = [run_events.subscribe(failing), run_events.subscribe(listener)]

    with pytest.raises(ValueError, match="x"), open_run():
        raise ValueError("x")

    for unsubscribe in undo:
        unsubscribe()
    assert listener.heard == [
        ("started", "train"),
        ("ending", "FAILED", "RUNNING"),
        ("ended", "ValueError: x", "FAILED"),
    ]
    assert len(failing.heard) == 3
    assert caplog.text.count("listener") >= 3


def test_a_listener_can_attach_a_file(started, tmp_path):
    """A listener can attach a file to a run that is ending, as the log of a run does."""
    (tmp_path / "job.log").write_text("line")

    class Attacher(Listener):
        def run_ending(self, run, end):
            run.attach(tmp_path / "job.log", "logs")

    unsubscribe = run_events.subscribe(Attacher())
    with open_run() as run:
        pass
    unsubscribe()

    assert [found.path for found in started.list_artifacts(run.info.run_id, "logs")] == ["logs/job.log"]


def test_a_lost_store_does_not_replace_the_exception(started, monkeypatch, caplog):
    """If the end of a run cannot be recorded, the job's own exception passes, and one error is logged."""

    def gone(*_):
        raise ConnectionError("gone")

    with pytest.raises(ZeroDivisionError), open_run(log_system_metrics=True):
        monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", gone)
        monkeypatch.setattr(mlflow.MlflowClient, "set_tag", gone)
        1 / 0  # noqa: B018 - it is the failing that counts

    assert mlflow.active_run() is None
    assert [
        (record.levelno, record.name) for record in caplog.records if "could not be recorded" in record.message
    ] == [(logging.ERROR, "autogen_team")]


def test_facts_name_the_run(started):
    """`facts` returns the id, name and experiment of the run inside it, and nothing outside."""
    assert run_events.facts() == {}

    with open_run() as run:
        assert run_events.facts() == {"run_id": run.info.run_id, "run_name": "train", "experiment": "tests"}

    assert run_events.facts() == {}


def test_facts_name_a_run_of_plain_mlflow(started):
    """`facts` returns the run that plain `mlflow.start_run` has opened."""
    with mlflow.start_run(run_name="plain") as run:
        assert run_events.facts()["run_id"] == run.info.run_id
        assert run_events.facts()["run_name"] == "plain"


def test_facts_in_another_thread_name_the_job_s_run(started):
    """`facts` returns the job's run in a thread without a run of its own."""
    heard = []
    with open_run() as run:
        thread = threading.Thread(target=lambda: heard.append(run_events.facts()["run_id"]))
        thread.start()
        thread.join()

    assert heard == [run.info.run_id]


def test_facts_inside_a_span_name_its_trace(started):
    """`facts` returns the ids of trace and span inside a span."""
    with mlflow.start_span("call") as span:
        found = run_events.facts()

    assert (found["trace_id"], found["span_id"]) == (span.trace_id, span.span_id)


def test_a_host_lets_the_job_s_own_run_join(started):
    """The job's first run joins the host run, which stays open until the host closes it."""
    with lifecycle.host_run(name="host", description=None, tags=None, log_system_metrics=None) as host:
        with open_run("mine", tags={"fold": 1}) as joined:
            pass
        assert started.get_run(host.info.run_id).info.status == "RUNNING"

    assert joined.info.run_id == host.info.run_id
    stored = started.get_run(host.info.run_id)
    assert (stored.info.status, stored.data.tags["fold"]) == ("FINISHED", "1")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda signum: signum.name)
def test_a_process_that_gets_a_signal_closes_its_run_as_killed(store_uri, start_python, signum):
    """A process that ends by a signal closes its run as KILLED, with the signal as its reason."""
    process = start_python("-c", SCRIPT.format(body="time.sleep(600)"))
    process.wait_for("run ")
    process.send(signum)
    status, _, _ = process.finish()

    assert status in (128 + signum, -signum)
    (run,) = mlflow.MlflowClient(store_uri).search_runs(["1"])
    assert (run.info.status, run.data.tags[run_events.EXCEPTION_TAG]) == ("KILLED", signum.name)


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [("sys.exit(0)", 0, "FINISHED"), ("sys.exit(3)", 3, "FAILED"), ("raise ValueError('bad')", 1, "FAILED")],
)
def test_a_process_that_exits_records_its_exit_status(store_uri, run_python, body, code, status):
    """The exit status of a process stays the job's own, and determines the status of its run."""
    exit_status, _, err = run_python("-c", SCRIPT.format(body=body))

    assert exit_status == code, err
    (run,) = mlflow.MlflowClient(store_uri).search_runs(["1"])
    assert run.info.status == status


def test_a_run_on_a_server_is_closed_like_any_other(mlflow_server):
    """A run on a real server gets its tags and its status."""
    stop = start(mlflow_server, "served")
    listener = Listener()
    unsubscribe = run_events.subscribe(listener)
    with pytest.raises(ValueError, match="x"), open_run(tags={"fold": 1}) as run:
        raise ValueError("x")
    unsubscribe()

    stored = mlflow.MlflowClient(mlflow_server).get_run(run.info.run_id)
    stop()

    assert (stored.info.status, stored.data.tags["fold"]) == ("FAILED", "1")
    assert listener.heard[-1] == ("ended", "ValueError: x", "FAILED")


def test_mlflow_prints_nothing_to_stdout(mlflow_server, capsys):
    """MLflow's two lines per run on a server do not go to stdout, which belongs to the job."""
    stop = start(mlflow_server, "served")
    with open_run():
        pass
    stop()

    assert capsys.readouterr().out == ""


def test_a_silent_store_is_given_up(started, monkeypatch, caplog):
    """Closing a run in a store that does not answer is given up after a time limit, with a report."""
    silent = threading.Event()
    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", lambda *_: silent.wait())
    monkeypatch.setattr(lifecycle, "PATIENCE", 0.2)
    with open_run():
        pass
    silent.set()

    assert "could not be recorded: no answer within 0.2 s" in caplog.text


def test_a_run_is_closed_in_the_store_that_it_was_opened_in(started, tmp_path):
    """A run is closed in its own store, although MLflow points to another store by then."""
    with open_run() as run:
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")

    assert started.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_run_can_be_closed_by_another_thread(started):
    """A run is closed when another thread leaves its block, as with a generator."""

    def generate():
        with open_run() as run:
            yield run

    generator = generate()
    run = next(generator)
    caught = []

    def throw() -> None:
        try:
            generator.throw(ValueError("x"))
        except ValueError as error:
            caught.append(error)

    thread = threading.Thread(target=throw)
    thread.start()
    thread.join()

    assert len(caught) == 1
    assert mlflow.active_run() is None
    assert started.get_run(run.info.run_id).info.status == "FAILED"


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(3)", "raise ValueError('child')"])
def test_a_forked_child_leaves_its_parent_s_run_alone(store_uri, run_python, end):
    """A forked child that leaves the inherited block does not close its parent's run."""
    body = f"import os\n    if os.fork() == 0: {end}\n    os.wait()"
    status, _, err = run_python("-W", "ignore", "-c", SCRIPT.format(body=body))

    assert status == 0, err
    (run,) = mlflow.MlflowClient(store_uri).search_runs(["1"])
    assert (run.info.status, run.data.tags.get(run_events.EXCEPTION_TAG)) == ("FINISHED", None)


def test_a_run_of_another_thread_is_closed_when_the_job_is_killed(store_uri, start_python):
    """SIGTERM closes the run of another thread, although the main thread has no run."""
    code = (
        "import threading, time; from autogen_team.io.services import MlflowService\n"
        "service = MlflowService()\n"
        "def work():\n"
        "    with service.run_context(service.RunConfig(name='train')): print('run', flush=True); time.sleep(600)\n"
        "with service:\n"
        "    threading.Thread(target=work, daemon=True).start(); time.sleep(600)"
    )
    process = start_python("-c", code)
    process.wait_for("run")
    process.send(signal.SIGTERM)
    status, _, err = process.finish()

    assert status == 143, err
    (run,) = mlflow.MlflowClient(store_uri).search_runs(["1"])
    assert (run.info.status, run.data.tags[run_events.EXCEPTION_TAG]) == ("KILLED", "SIGTERM")


@pytest.mark.parametrize("moment", ["run_started", "run_ending"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)
def test_a_signal_while_a_run_is_opened_or_closed_is_not_lost(started, moment, signum):
    """A signal during the opening or closing of a run takes effect after it, and the run is closed."""

    class Signaller(Listener):
        pass

    setattr(Signaller, moment, lambda self, run, *end: signal.raise_signal(signum))
    unsubscribe = run_events.subscribe(Signaller())
    after = []
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        with open_run() as run:
            after.append(run)
        after.append("went on")
    unsubscribe()

    assert "went on" not in after
    (stored,) = started.search_runs(["1"])
    assert stored.info.status == ("KILLED" if moment == "run_started" else "FINISHED")


def test_secrets_in_tags_and_descriptions_are_masked(started):
    """Secrets in the tags and the description of a run are not stored."""
    address = "postgresql://bob:hunter2-hunter2@db/runs"
    with open_run(tags={"db": address}, description=f"from {address}") as run:
        pass

    assert "hunter2" not in str(started.get_run(run.info.run_id).data.tags)


@pytest.mark.parametrize(("signum", "kind"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_during_a_failed_opening_of_a_run_takes_effect(started, monkeypatch, signum, kind):
    """A signal during a failed opening of a run ends the job."""

    def fail(**_):
        signal.raise_signal(signum)
        raise mlflow.MlflowException("no")

    monkeypatch.setattr(mlflow, "start_run", fail)
    with pytest.raises(kind), open_run():
        pass


def test_services_can_stop_in_any_order_and_keep_the_facts(started):
    """`facts` returns the run of a remaining service, whichever services have stopped before."""
    stop_second = start(mlflow.get_tracking_uri(), "tests")
    stop_third = start(mlflow.get_tracking_uri(), "tests")
    stop_second()
    with open_run() as run:
        assert run_events.facts()["run_id"] == run.info.run_id
    stop_third()
    assert run_events.facts() == {}


def test_the_url_of_a_run_on_a_server_is_logged(mlflow_server, caplog, capsys):
    """The URL of a run on a server is logged, not printed to stdout."""
    caplog.set_level(logging.INFO, logger="autogen_team")
    stop = start(mlflow_server, "served")
    with open_run() as run:
        pass
    stop()

    (line,) = [record.message for record in caplog.records if "ended as FINISHED" in record.message]
    assert line.endswith(f"{mlflow_server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
    assert capsys.readouterr().out == ""


def test_a_handled_signal_closes_no_run(store_uri, start_session):
    """A signal that the job has handled does not close runs when a worker in a thread ends."""
    start_session(store_uri)
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        with lifecycle.open_run(name="train") as run:
            signal.raise_signal(signal.SIGHUP)
            lifecycle.close_open_runs()
            assert mlflow.get_run(run.info.run_id).info.status == "RUNNING"
    finally:
        signal.signal(signal.SIGHUP, before)
