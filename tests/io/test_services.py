"""The contract of the user story: one class per service."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import time
import typing
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import loguru
import mlflow
import pytest
from mlflow.tracking import MlflowClient

from autogen_team._process import identity
from autogen_team.errors import ConfigurationError, ConfigurationWarning, NotStartedError, TrackingUnavailableError
from autogen_team.io.osvariables import Env
from autogen_team.io.services import AlertsService, LoggerService, MlflowService, Service

SOON = 30.0
"""Seconds; a generous limit for operations for which MLflow alone needs four minutes."""


class TestLoggerService:
    """User story 1: the logger service."""

    def test_has_the_fields_of_the_story(self):
        """The fields have the names and types of the user story."""
        hints = typing.get_type_hints(LoggerService)

        assert {name: hints[name] for name in ("sink", "level", "format")} == dict.fromkeys(
            ("sink", "level", "format"), str
        )
        for name in ("colorize", "serialize", "backtrace", "diagnose", "catch"):
            assert hints[name] is bool

    def test_the_logger_is_loguru_s(self):
        """`logger()` returns the logger that every module imports from loguru."""
        assert LoggerService().logger() is loguru.logger

    def test_a_line_shows_time_level_and_source(self, capsys):
        """By default lines go to stderr, without colour unless it is a terminal."""
        with LoggerService() as service:
            service.logger().warning("disk {}% full", 91)

        out, err = capsys.readouterr()
        assert out == ""
        moment, level, rest = err.split(" | ")
        assert time.strptime(moment.partition(".")[0], "%Y-%m-%d %H:%M:%S")
        assert level.strip() == "WARNING"
        source, _, message = rest.partition(" - ")
        assert source.endswith(":test_a_line_shows_time_level_and_source:" + source.rpartition(":")[2])
        assert message == "disk 91% full\n"

    @pytest.mark.parametrize("name", ["stdout", "STDOUT", "Stdout"])
    def test_stdout_is_a_sink(self, name, capsys):
        """The name is accepted in any case."""
        with LoggerService(sink=name, format="{message}") as service:
            service.logger().info("line")

        assert capsys.readouterr() == ("line\n", "")
        assert not Path(name).exists()

    def test_streams_are_bound_late(self):
        """A redirection after the start receives the lines."""
        out, err = StringIO(), StringIO()
        with LoggerService(sink="stderr", format="{message}") as service, redirect_stderr(err):
            service.logger().info("to stderr")
        with LoggerService(sink="stdout", format="{message}") as service, redirect_stdout(out):
            service.logger().info("to stdout")

        assert (out.getvalue(), err.getvalue()) == ("to stdout\n", "to stderr\n")

    def test_a_file_is_a_sink(self, monkeypatch, tmp_path):
        """Its folders are created, and `~` is the home folder."""
        monkeypatch.setenv("HOME", str(tmp_path))
        with LoggerService(sink="~/logs/deep/job.log", format="{message}") as service:
            service.logger().info("line")

        assert (tmp_path / "logs" / "deep" / "job.log").read_text() == "line\n"
        assert not Path("~").exists()

    def test_a_file_has_no_colour(self, monkeypatch):
        """A file has no colour, whatever the environment requests."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        with LoggerService(sink="job.log", format="<red>{message}</red>") as service:
            service.logger().info("line")

        assert Path("job.log").read_text() == "line\n"

    @pytest.mark.parametrize(
        ("variables", "terminal", "colorize", "coloured"),
        [
            ({}, False, True, False),
            ({}, True, True, True),
            ({}, True, False, False),
            ({"NO_COLOR": "1"}, True, True, False),
            ({"FORCE_COLOR": "1"}, False, True, True),
            ({"FORCE_COLOR": "1"}, False, False, False),
        ],
    )
    def test_colour_is_for_terminals(self, variables, terminal, colorize, coloured, monkeypatch):
        """NO_COLOR, FORCE_COLOR and the field are respected."""
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        stream = StringIO()
        stream.isatty = lambda: terminal
        with redirect_stderr(stream), LoggerService(format="<red>{message}</red>", colorize=colorize) as service:
            service.logger().info("line")

        assert ("\x1b[31m" in stream.getvalue()) is coloured

    def test_levels_below_are_not_shown(self, capsys):
        """The level is a threshold, in upper or lower case."""
        with LoggerService(level="warning", format="{message}") as service:
            service.logger().info("below")
            service.logger().warning("at")

        assert capsys.readouterr().err == "at\n"

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"level": "LOUD"}, "LOUD"),
            ({"format": "{nope}"}, "nope"),
            ({"format": "{message"}, "{message"),
            ({"format": "<nocolour>{message}</nocolour>"}, "nocolour"),
            ({"sink": "."}, "."),
            ({"sink": ""}, "sink"),
        ],
    )
    def test_an_invalid_field_is_refused_at_start(self, fields, named, capsys):
        """The message has the value, and earlier handlers stay."""
        lines = []
        handler = loguru.logger.add(lambda message: lines.append(str(message)), format="{message}")
        service = LoggerService(**fields)

        with pytest.raises(ConfigurationError) as raised:
            service.start()
        loguru.logger.info("still here")
        loguru.logger.remove(handler)

        assert named in str(raised.value)
        assert lines == ["still here\n"]
        assert not service.is_started

    def test_handlers_of_the_job_are_left_alone(self):
        """Handlers of the job stay during and after the service."""
        lines = []
        handler = loguru.logger.add(lambda message: lines.append(str(message)), format="{message}")
        with LoggerService(sink="job.log"):
            loguru.logger.info("during")
        loguru.logger.info("after")
        loguru.logger.remove(handler)

        assert lines == ["during\n", "after\n"]

    def test_loguru_s_own_handler_is_silenced_and_restored(self, run_python):
        """Lines are not printed twice, and `stop` restores loguru's handler."""
        code = (
            "from loguru import logger; from autogen_team import LoggerService\n"
            "logger.info('before')\n"
            "with LoggerService(sink='stdout', format='{message}'): logger.info('during')\n"
            "logger.info('after')"
        )
        _, out, err = run_python("-c", code)

        assert out == "during\n"
        assert [line.rpartition(" - ")[2] for line in err.splitlines()] == ["before", "after"]

    def test_starting_twice_logs_once(self, capsys):
        """One `stop` is enough after two starts."""
        service = LoggerService(format="{message}")
        service.start()
        service.start()
        service.logger().info("line")
        service.stop()
        service.logger().info("not ours any more")
        service.stop()

        assert capsys.readouterr().err.count("line") == 1

    @pytest.mark.parametrize(("sink", "times"), [("job.log", 1), ("stdout", 1), ("stderr", 0)])
    def test_the_exception_that_ends_the_block_is_logged(self, sink, times, capsys):
        """The line has the place of the exception; it is not logged if Python prints it anyway."""
        with pytest.raises(ValueError, match="boom"), LoggerService(sink=sink):
            raise ValueError("boom")

        out, err = capsys.readouterr()
        text = Path(sink).read_text() if sink == "job.log" else out + err
        assert text.count("ValueError: boom") == times
        assert text.count(":test_the_exception_that_ends_the_block_is_logged:") == times

    def test_a_sink_in_an_inaccessible_folder_is_refused_clearly(self):
        """A sink in an inaccessible folder is rejected like any other unwritable one."""
        with pytest.raises(ConfigurationError, match="cannot be written"):
            LoggerService(sink="/proc/nowhere/job.log").start()

    def test_json_has_one_object_per_line(self, capsys):
        """`serialize` writes one JSON object per line."""
        with LoggerService(serialize=True) as service:
            service.logger().bind(fold=1).info("line")

        (line,) = capsys.readouterr().err.splitlines()
        assert json.loads(line)["message"] == "line"


class TestAlertsService:
    """User story 2: the alerts service."""

    def test_has_the_fields_of_the_story(self):
        """The fields have the names and defaults of the user story, and `notify` has its signature."""
        assert (AlertsService().enable, AlertsService().app_name, AlertsService().timeout) == (
            True,
            "autogen_team",
            None,
        )
        parameters = inspect.signature(AlertsService.notify).parameters
        assert list(parameters) == ["self", "title", "message", "level"]
        assert parameters["level"].kind is inspect.Parameter.KEYWORD_ONLY

    @pytest.mark.parametrize("started", [True, False])
    def test_a_disabled_alert_is_printed(self, started, capsys):
        """Exactly one line goes to stdout, before and after the service has started."""
        service = AlertsService(enable=False, app_name="train")
        if started:
            service.start()
        service.notify("done", "model trained")
        service.stop()

        assert capsys.readouterr() == ("[train] done: model trained\n", "")

    def test_an_alert_that_the_desktop_cannot_show_is_printed(self, monkeypatch, capsys):
        """The same line is printed, and nothing is raised."""
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere/bus")
        with AlertsService() as service:
            service.notify("done", "model trained")

        assert capsys.readouterr().out == "[autogen_team] done: model trained\n"

    def test_an_unknown_level_is_refused(self):
        """An unknown level is a programming error and raises at once."""
        with pytest.raises(ConfigurationError, match="loud"):
            AlertsService(enable=False).notify("done", "x", level="loud")

    def test_the_alert_of_a_worker_is_logged_without_secrets(self, monkeypatch, caplog):
        """Secrets are masked even if no logger service runs."""
        monkeypatch.setenv("API_TOKEN", "correct-horse-battery")
        monkeypatch.setattr(identity, "_worker", identity.process_name())
        AlertsService().notify("done", "with correct-horse-battery", level="warning")

        assert caplog.messages == ["alert from a worker, not sent: done: with ***"]


@pytest.fixture
def service(store_uri):
    """Return a tracking service with a local store."""
    return MlflowService(tracking_uri=store_uri, experiment_name="tests", autolog_silent=True)


class TestMlflowService:
    """User story 3: the MLflow service."""

    def test_has_the_fields_of_the_story(self):
        """The twelve fields have the types of the user story, as have the run configuration and the class variable."""
        hints = typing.get_type_hints(MlflowService)
        texts = ("tracking_uri", "registry_uri", "experiment_name", "registry_name")
        flags = (
            "autolog_disable",
            "autolog_disable_for_unsupported_versions",
            "autolog_exclusive",
            "autolog_log_input_examples",
            "autolog_log_model_signatures",
            "autolog_log_models",
            "autolog_log_datasets",
            "autolog_silent",
        )
        assert {name: hints[name] for name in (*texts, *flags)} == {
            **dict.fromkeys(texts, str),
            **dict.fromkeys(flags, bool),
        }
        of_a_run = MlflowService.RunConfig.model_fields
        assert [(name, str(field.annotation)) for name, field in of_a_run.items()][:4] == [
            ("name", "<class 'str'>"),
            ("description", "str | None"),
            ("tags", "dict[str, typing.Any] | None"),
            ("log_system_metrics", "bool | None"),
        ]
        assert [name for name, field in of_a_run.items() if field.is_required()] == ["name"]
        assert isinstance(MlflowService.env, Env)

    def test_start_sets_uris_and_experiment(self, service, store_uri):
        """`stop` restores the previous values."""
        registry = f"{store_uri}.registry"
        service = service.model_copy(update={"registry_uri": registry})
        before = mlflow.is_tracking_uri_set(), {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_")}

        with service:
            assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (store_uri, registry)
            with mlflow.start_run() as run:
                pass
            assert mlflow.get_experiment(run.info.experiment_id).name == "tests"

        assert (
            mlflow.is_tracking_uri_set(),
            {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_")},
        ) == before

    def test_every_autolog_field_reaches_mlflow(self, service, monkeypatch):
        """Each field has its own value; two projects that inspired this one forget `autolog_log_models`."""
        got = {}
        monkeypatch.setattr(mlflow, "autolog", lambda **arguments: got.update(arguments))
        names = [name for name in MlflowService.model_fields if name.startswith("autolog_")]

        for flipped in names:
            fields = {name: name == flipped for name in names}
            with MlflowService(tracking_uri=service.tracking_uri, **fields):
                pass
            assert got == {name.removeprefix("autolog_"): value for name, value in fields.items()}

    def test_parameters_metrics_and_model_are_autologged(self, service):
        """A real training run is autologged, but not after `stop`."""
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        x, y = np.arange(20).reshape(-1, 1), np.arange(20) > 9
        with service, service.run_context(MlflowService.RunConfig(name="fit", log_system_metrics=False)) as run:
            LogisticRegression(C=0.5).fit(x, y)
        LogisticRegression().fit(x, y)

        stored = service.client().get_run(run.info.run_id)
        assert stored.data.params["C"] == "0.5"
        assert "training_accuracy_score" in stored.data.metrics
        assert len(stored.outputs.model_outputs) == 1
        assert len(service.client().search_runs([run.info.experiment_id])) == 1

    def test_a_model_is_not_logged_when_that_is_switched_off(self, service):
        """`autolog_log_models=False` is respected."""
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        service = service.model_copy(update={"autolog_log_models": False})
        with service, service.run_context(MlflowService.RunConfig(name="fit", log_system_metrics=False)) as run:
            LogisticRegression().fit(np.arange(20).reshape(-1, 1), np.arange(20) > 9)

        assert service.client().get_run(run.info.run_id).outputs.model_outputs == []

    def test_run_context_gives_an_active_run(self, service):
        """Plain MLflow calls log to the run."""
        config = MlflowService.RunConfig(name="train", description="about", tags={"fold": 1}, log_system_metrics=False)
        with service, service.run_context(config) as run:
            assert isinstance(run, mlflow.ActiveRun)
            mlflow.log_metric("loss", 0.1)

        stored = service.client().get_run(run.info.run_id)
        assert (stored.info.run_name, stored.info.status) == ("train", "FINISHED")
        assert (stored.data.metrics, stored.data.tags["fold"]) == ({"loss": 0.1}, "1")

    def test_a_run_outside_of_the_service_is_refused(self, service):
        """The run would go to a store that the user has not chosen."""
        with pytest.raises(NotStartedError, match="start"), service.run_context(MlflowService.RunConfig(name="train")):
            pytest.fail("the block must not run")

    def test_a_run_that_the_job_opened_outlives_the_service(self, service, store_uri):
        """`stop` does not close a run that the job opened."""
        mlflow.set_tracking_uri(store_uri)
        run = mlflow.start_run()
        with service:
            pass

        assert mlflow.active_run().info.run_id == run.info.run_id
        assert service.client().get_run(run.info.run_id).info.status == "RUNNING"
        mlflow.end_run()
        mlflow.set_tracking_uri(None)

    def test_the_client_is_bound_to_the_stores(self, service, store_uri):
        """The client works whether or not the service runs."""
        client = service.client()

        assert isinstance(client, MlflowClient)
        assert (client.tracking_uri, client._registry_uri) == (store_uri, store_uri)

    def test_an_unreachable_server_is_reported_at_once(self, free_port):
        """The error has the address with a masked password; MLflow's state has not changed."""
        port = free_port()
        service = MlflowService(tracking_uri=f"http://bob:hunter2@127.0.0.1:{port}")
        begun = time.monotonic()

        with pytest.raises(TrackingUnavailableError) as raised:
            service.start()

        assert time.monotonic() - begun < SOON
        assert f"127.0.0.1:{port}" in str(raised.value)
        assert "hunter2" not in str(raised.value)
        assert not mlflow.is_tracking_uri_set()

    def test_a_server_that_hangs_after_its_health_check_is_reported_in_time(self, free_port, start_python):
        """If the server answers `/health` only, MLflow's own retries would take minutes."""
        port = free_port()
        code = (
            "import http.server, time\n"
            "class Handler(http.server.BaseHTTPRequestHandler):\n"
            "    def do_GET(self):\n"
            "        if self.path != '/health': time.sleep(600)\n"
            "        self.send_response(200); self.send_header('Content-Length', '0'); self.end_headers()\n"
            f"server = http.server.ThreadingHTTPServer(('127.0.0.1', {port}), Handler)\n"
            "print('ready', flush=True); server.serve_forever()"
        )
        start_python("-c", code).wait_for("ready")
        begun = time.monotonic()

        with pytest.raises(TrackingUnavailableError, match=f"127.0.0.1:{port}") as raised:
            MlflowService(tracking_uri=f"http://bob:hunter2@127.0.0.1:{port}", connect_timeout=1).start()

        assert time.monotonic() - begun < SOON
        assert "hunter2" not in str(raised.value)
        assert not mlflow.is_tracking_uri_set()

    def test_a_deleted_experiment_is_a_fault_of_configuration(self, service):
        """The message names the experiment and the remedy."""
        with service:
            experiment = mlflow.get_experiment_by_name("tests")
        service.client().delete_experiment(experiment.experiment_id)

        with pytest.raises(ConfigurationError, match="'tests' is deleted: restore it"):
            service.start()

    @pytest.mark.parametrize("path", ["folder", "text.db", "text.db/mlflow.db"])
    def test_a_database_that_cannot_be_opened_is_reported_at_once(self, tmp_path, path):
        """For a folder, an invalid database, or a file in place of a folder, MLflow would try for 100 seconds."""
        (tmp_path / "folder").mkdir()
        (tmp_path / "text.db").write_text("no database" * 100)
        begun = time.monotonic()

        with pytest.raises(TrackingUnavailableError, match=path):
            MlflowService(tracking_uri=f"sqlite:///{tmp_path}/{path}").start()

        assert time.monotonic() - begun < SOON

    @pytest.mark.parametrize("prefix", ["", "file://"])
    def test_a_folder_still_works(self, tmp_path, prefix):
        """A warning says that MLflow will drop folders; MLflow's permission variable is set only while started."""
        service = MlflowService(tracking_uri=f"{prefix}{tmp_path}/mlruns", autolog_disable=True)

        with pytest.warns(ConfigurationWarning, match="sqlite:///mlflow.db"):
            service.start()
        with service.run_context(MlflowService.RunConfig(name="train", log_system_metrics=False)) as run:
            mlflow.log_param("a", 1)
        stored = service.client().get_run(run.info.run_id)
        service.stop()

        assert (stored.info.status, stored.data.params) == ("FINISHED", {"a": "1"})
        assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ

    def test_a_started_service_works_from_a_copy_in_another_process(self, service, run_python):
        """The service is pickled as its configuration, and can be started in the other process."""
        with service:
            data = pickle.dumps(service)
        code = f"import pickle; s = pickle.loads({data!r}); print(s.is_started)\nwith s: print(s.is_started)"
        status, out, err = run_python("-c", code)

        assert (status, out) == (0, "False\nTrue\n"), err

    def test_mlflow_is_loaded_only_when_the_service_starts(self, run_python):
        """Neither configuring a service nor `active_run` imports MLflow before the start."""
        code = (
            "import sys; from autogen_team import MlflowService\n"
            "assert MlflowService().active_run is None; assert 'mlflow' not in sys.modules"
        )
        status, _, err = run_python("-c", code, fresh=True)

        assert status == 0, err

    def test_a_run_on_a_server_has_a_link(self):
        """Alerts and the console display the link."""
        assert MlflowService(tracking_uri="http://m:5000").link("1", "a") == "http://m:5000/#/experiments/1/runs/a"
        assert MlflowService(tracking_uri="sqlite:///x.db").link("1", "a") is None


def test_the_service_of_mlflow_has_no_public_names_for_internal_use():
    """The public names of MlflowService, apart from its fields, are those that users call."""
    of_every_service = {name for name in dir(Service) if not name.startswith("_")}
    fields = MlflowService.model_fields.keys()
    own = {name for name in dir(MlflowService) if not name.startswith("_")} - of_every_service - fields

    assert own == {
        "RunConfig",
        "active_run",
        "attempt",
        "client",
        "copy_from",
        "env",
        "flush",
        "last_step",
        "link",
        "log_config",
        "log_metrics",
        "recover",
        "register",
        "run_context",
        "stores",
    }
