"""The three services combined in one context."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle
import threading
from pathlib import Path

import loguru
import mlflow
import pytest

from autogen_team import GlobalContext, _propagation
from autogen_team.errors import ConfigurationError, NotStartedError, TrackingUnavailableError
from autogen_team.io.services import AlertsService, LoggerService, MlflowService


@pytest.fixture
def context(store_uri):
    """Return a context on a local store, which prints its alerts and logs to stderr."""
    return GlobalContext(
        logger_service=LoggerService(format="{level} {message}"),
        alerts_service=AlertsService(enable=False),
        mlflow_service=MlflowService(tracking_uri=store_uri, autolog_disable=True, autolog_silent=True),
    )


def services(context):
    """Return the three services."""
    return [context.logger_service, context.alerts_service, context.mlflow_service]


def test_the_services_start_and_stop_together(context, capsys):
    """The context has the methods of the services."""
    with context:
        assert [service.is_started for service in services(context)] == [True, True, True]
        assert GlobalContext.current() is context
        with context.run("train", tags={"fold": 1}) as run:
            context.logger.info("inside")
            assert context.active_run.info.run_id == run.info.run_id
        context.notify("done", "trained")
        assert context.active_run is None

    assert [service.is_started for service in services(context)] == [False, False, False]
    out, err = capsys.readouterr()
    assert out == "[autogen_team] done: trained\n"
    assert "INFO inside\n" in err
    stored = context.mlflow_service.client().get_run(run.info.run_id)
    assert (stored.info.status, stored.data.tags["fold"]) == ("FINISHED", "1")


def test_a_run_takes_a_name_or_a_configuration(context):
    """Further fields can be given in addition."""
    with context:
        with context.run(MlflowService.RunConfig(name="a", description="b"), log_system_metrics=False) as run:
            pass
        with pytest.raises(ValueError, match="tag"), context.run("a", tag=1):
            pytest.fail("the block must not run")

    stored = context.mlflow_service.client().get_run(run.info.run_id)
    assert (stored.info.run_name, stored.data.tags["mlflow.note.content"]) == ("a", "b")


def test_a_start_that_fails_stops_the_started_services(free_port, context):
    """Services that had started are stopped, and the failing service's own error is raised."""
    broken = context.model_copy(
        update={"mlflow_service": MlflowService(tracking_uri=f"http://127.0.0.1:{free_port()}")}
    )

    with pytest.raises(TrackingUnavailableError):
        broken.start()

    assert [service.is_started for service in [broken, *services(broken)]] == [False] * 4
    with pytest.raises(NotStartedError):
        GlobalContext.current()


def test_a_stop_that_fails_does_not_keep_others_from_stopping(context):
    """The job's exception is raised, and the other services are stopped."""
    with pytest.raises(ZeroDivisionError), context:
        context.mlflow_service.stop()
        context.mlflow_service._on_stop(lambda: int("not a number"))
        1 / 0  # noqa: B018 - it is the failing that counts

    assert not context.logger_service.is_started
    assert not context.alerts_service.is_started


def test_a_service_that_the_job_started_itself_is_left_running(context):
    """The job stops services that it started itself."""
    context.logger_service.start()
    with context:
        pass

    assert context.logger_service.is_started
    context.logger_service.stop()


def test_starting_twice_and_stopping_twice_do_nothing(context):
    """Starting and stopping are idempotent, as for any service."""
    context.start()
    context.start()
    context.stop()
    context.stop()

    with pytest.raises(NotStartedError, match="with GlobalContext"):
        GlobalContext.current()


def test_contexts_nest(context, store_uri):
    """The inner context is the current one while it runs, even if it equals the outer one."""
    inner = copy.deepcopy(context)
    with context:
        with inner:
            assert GlobalContext.current() is inner
        assert GlobalContext.current() is context
        assert mlflow.get_tracking_uri() == store_uri


def test_a_context_is_a_value(context):
    """A context equals another one with the same services, running or not, and is pickled as such."""
    with context:
        twin = pickle.loads(pickle.dumps(context))

        assert twin == context
        assert not twin.is_started


def test_any_thread_finds_the_context(context):
    """The context belongs to the process, not to a thread."""
    found = []
    with context:
        thread = threading.Thread(target=lambda: found.append(GlobalContext.current()))
        thread.start()
        thread.join()

    assert found[0] is context


def test_settings_are_those_of_all_services(context):
    """The names are those of `autogen-team run --set`."""
    settings = {setting.name: setting for setting in context.settings()}

    assert settings["logger.format"].source == "argument"
    assert settings["logger.level"].source == "default"
    assert settings["mlflow.state_dir"].variable == "AUTOGEN_TEAM_STATE_DIR"
    assert len(settings) == sum(len(cls.model_fields) for cls in (LoggerService, AlertsService, MlflowService)) + len(
        GlobalContext.variables()
    )


def test_a_bad_variable_of_a_service_is_named_by_the_context(monkeypatch):
    """The error names the variable, not a nested field."""
    monkeypatch.setenv("AUTOGEN_TEAM_ALERTS_TIMEOUT", "soon")

    with pytest.raises(ConfigurationError, match="AUTOGEN_TEAM_ALERTS_TIMEOUT is 'soon'"):
        GlobalContext()


def test_services_can_be_given_as_fields():
    """Configuration files can contain services as fields."""
    context = GlobalContext(logger_service={"level": "DEBUG"})

    assert context.logger_service == LoggerService(level="DEBUG")


def test_the_logger_is_that_of_loguru(context):
    """Modules that do not know our package log to the same logger."""
    assert context.logger is loguru.logger


def test_the_exception_that_ends_the_job_is_in_its_log_once(context):
    """The exception is logged although logging ends before Python reports it."""
    logged = context.model_copy(update={"logger_service": LoggerService(sink="job.log")})
    with pytest.raises(ValueError, match="boom"), logged, logged.run("train", log_system_metrics=False):
        raise ValueError("boom")

    assert Path("job.log").read_text().count("ValueError: boom") == 1


def test_a_context_that_never_alerts_does_not_silence_one_inside(context, capsys):
    """`alert_on="never"` of an outer context does not affect an inner one."""
    silent = context.model_copy(update={"alert_on": "never"})
    with silent, pytest.raises(ValueError, match="x"), context, context.run("train", log_system_metrics=False):
        raise ValueError("x")

    assert "train failed" in capsys.readouterr().out


def test_an_alert_does_not_wait_for_a_server(context, start_python, free_port, capsys):
    """Each service has its own lock."""
    port = free_port()
    silent = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); print('ready'); time.sleep(600)"
    start_python("-c", silent).wait_for("ready")
    waiting = MlflowService(tracking_uri=f"http://127.0.0.1:{port}", connect_timeout=3)
    failures = []

    def start() -> None:
        try:
            waiting.start()
        except TrackingUnavailableError as error:
            failures.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    context.alerts_service.notify("done", "at once")
    assert thread.is_alive()
    thread.join()

    assert len(failures) == 1
    assert "done: at once" in capsys.readouterr().out


def test_a_bound_asynchronous_generator_that_is_closed_early_cleans_up_in_its_run(context):
    """The last items of the generator are logged to its own run, and it receives sent values."""

    async def count():
        try:
            for number in range(10):
                got = yield number
                mlflow.log_metric("got", got or 0, step=number)
        finally:
            mlflow.log_param("closed", 1)

    async def use(bound):
        items = bound()
        found = [await anext(items), await items.asend(5)]
        await items.aclose()
        return found

    with context, context.run("train") as run:
        assert asyncio.run(use(context.bind(count, nested=True))) == [0, 1]
        assert mlflow.active_run().info.run_id == run.info.run_id

    client = context.mlflow_service.client()
    [child] = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{run.info.run_id}'")
    assert (child.data.metrics, child.data.params, child.info.status) == ({"got": 5.0}, {"closed": "1"}, "FINISHED")
    assert client.get_run(run.info.run_id).data.params == {}


def test_an_exception_reaches_a_bound_asynchronous_generator(context):
    """The generator can handle the exception, as an unbound one can."""

    async def block():
        try:
            yield 1
        except ValueError as error:
            mlflow.log_param("caught", str(error))

    async def use(bound):
        async with contextlib.asynccontextmanager(bound)():
            raise ValueError("x")

    with context, context.run("train") as run:
        asyncio.run(use(context.bind(block)))

    assert context.mlflow_service.client().get_run(run.info.run_id).data.params == {"caught": "x"}


def test_binding_again_keeps_one_context(context):
    """A pool may get a bound function for each of a million tasks."""
    with context:
        for _ in range(3):
            context.bind(len)
        assert list(_propagation._Process.here().captured.values()).count(context) == 1
