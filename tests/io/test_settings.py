"""Sources of settings, and errors about invalid settings."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from autogen_team import GlobalContext
from autogen_team._services import settings
from autogen_team._services.settings import descriptions
from autogen_team._services.state import StateFolder
from autogen_team.errors import ConfigurationError, ConfigurationWarning
from autogen_team.io.osvariables import Env
from autogen_team.io.services import AlertsService, LoggerService, MlflowService, Service

SERVICES = [LoggerService, AlertsService, MlflowService]
EXAMPLES = {bool: ("true", "false"), int: ("7", "8"), float: ("7.5", "8.5"), str: ("one", "two"), tuple: ("a b", "c")}
EVERY_FIELD = [(cls, name) for cls in SERVICES for name in cls.model_fields]


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the misspelt variables that other tests have reported, because each is reported once per process."""
    monkeypatch.setattr(settings, "_reported", set())


def texts_for(cls: type[Service], name: str) -> tuple[str, str]:
    """Return two valid texts for a field, neither of them its default."""
    default = getattr(cls(), name)
    annotation = cls.model_fields[name].annotation
    if get_origin(annotation) is Literal:
        others = [word for word in get_args(annotation) if word != default]
        return others[0], [*others, default][1]
    if name == "ping":
        return "https://hc-ping.com/one", "https://hc-ping.com/two"
    if name == "timeout":
        return EXAMPLES[int]
    if isinstance(default, bool):
        return (str(not default), str(default))
    return EXAMPLES[type(default)] if default is not None else EXAMPLES[str]


@pytest.mark.parametrize(("cls", "name"), EVERY_FIELD, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_has_a_variable_a_line_of_dotenv_and_an_argument(cls, name, monkeypatch, snapshots):
    """An argument overrides the environment, then `.env`, then the default, for every field."""
    monkeypatch.delenv("AUTOGEN_TEAM_STATE_DIR")
    variable = cls.variables()[name]
    first, second = texts_for(cls, name)

    def source() -> str:
        return next(setting.source for setting in cls().settings() if setting.name == name)

    default = cls()
    assert source() == "default"

    Path(".env").write_text(f'{variable}="{second}"\nUNRELATED=1\n')
    from_dotenv = cls()
    assert source() == ".env"
    assert getattr(from_dotenv, name) == getattr(cls(**{name: second}), name)

    monkeypatch.setenv(variable, first)
    assert source() == "environment"
    assert getattr(cls(), name) == getattr(cls(**{name: first}), name) != getattr(from_dotenv, name)

    given = cls(**{name: getattr(default, name)})
    assert getattr(given, name) == getattr(default, name)
    assert next(setting.source for setting in given.settings() if setting.name == name) == "argument"


def test_each_field_has_a_description():
    """IDEs, the reference and the command line show the description."""
    assert [
        f"{cls.__name__}.{name}"
        for cls in [*SERVICES, Env]
        for name in cls.model_fields
        if not descriptions(cls).get(name)
    ] == []


def test_descriptions_are_inherited_and_may_be_missing():
    """Descriptions of a subclass come first; a class without source code has those of its bases."""

    class Other(Env):
        mlflow_experiment_name: str = "other"
        """Another description."""
        more: int = 1

    here = descriptions(Other)

    class AtTheMargin(Env):
        more: str = """
at the margin
"""

    typed: dict[str, type] = {}
    exec("class Typed(Env): more: int = 1", {"Env": Env}, typed)

    assert here["mlflow_experiment_name"] == "Another description."
    assert here["mlflow_registry_uri"] == descriptions(Env)["mlflow_registry_uri"]
    assert "more" not in here
    assert descriptions(typed["Typed"]) == descriptions(AtTheMargin) == descriptions(Env)


def test_settings_are_read_when_a_service_is_created(monkeypatch):
    """Settings are read neither at import nor after the service is created."""
    early = MlflowService()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "late")

    assert (early.experiment_name, MlflowService().experiment_name) == ("autogen_team", "late")
    assert MlflowService.env.mlflow_experiment_name == "late"


def test_the_registry_follows_tracking_unless_it_is_set(monkeypatch):
    """The registry URI follows the tracking URI unless an argument or a variable sets it."""
    assert MlflowService(tracking_uri="sqlite:///a.db").registry_uri == "sqlite:///a.db"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    assert MlflowService().registry_uri == "http://tracking"

    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry")
    assert MlflowService().registry_uri == "http://registry"


def test_an_empty_variable_is_an_unset_one(monkeypatch):
    """docker-compose and CI write unknown variables as empty ones."""
    monkeypatch.setenv("AUTOGEN_TEAM_ALERTS_TIMEOUT", "")

    assert AlertsService().timeout is None


def test_none_can_be_written_in_a_variable(monkeypatch):
    """`none` overrides a value in `.env`."""
    Path(".env").write_text("AUTOGEN_TEAM_ALERTS_TIMEOUT=5\n")
    monkeypatch.setenv("AUTOGEN_TEAM_ALERTS_TIMEOUT", "none")

    assert AlertsService().timeout is None


def test_urls_are_separated_by_spaces(monkeypatch):
    """URLs are never shown."""
    monkeypatch.setenv("AUTOGEN_TEAM_ALERTS_URLS", "json://one tgram://two")

    service = AlertsService()

    assert [url.get_secret_value() for url in service.urls] == ["json://one", "tgram://two"]
    assert "json://" not in repr(service)
    assert all("json://" not in setting.value for setting in service.settings())


def test_a_path_is_accepted_as_a_text():
    """A log file or a store is often given as a `Path`."""
    assert LoggerService(sink=Path("job.log")).sink == "job.log"


@pytest.mark.parametrize(
    ("cls", "variable", "value", "hint"),
    [
        (AlertsService, "AUTOGEN_TEAM_ALERTS_TIMEOUT", "soon", "valid integer"),
        (AlertsService, "AUTOGEN_TEAM_ALERTS_TIMEOUT", "-1", "greater than or equal to 0"),
        (LoggerService, "AUTOGEN_TEAM_LOGGER_COLORIZE", "maybe", "valid boolean"),
        (MlflowService, "AUTOGEN_TEAM_MLFLOW_CONNECT_TIMEOUT", "0", "greater than 0"),
    ],
)
def test_a_value_that_does_not_parse_is_named_with_its_variable(cls, variable, value, hint, monkeypatch):
    """The error names the variable, its value, its source and the valid values."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigurationError) as raised:
        cls()

    assert f"{variable} is {value!r} (environment)" in str(raised.value)
    assert hint in str(raised.value)


def test_a_bad_line_of_dotenv_is_named_as_such():
    """The error says that the value comes from `.env`."""
    Path(".env").write_text("AUTOGEN_TEAM_ALERTS_COOLDOWN=long\n")

    with pytest.raises(ConfigurationError, match=r"AUTOGEN_TEAM_ALERTS_COOLDOWN is 'long' \(\.env\)"):
        AlertsService()


def test_a_bad_argument_is_named_with_its_field():
    """The error also names the variable with the same effect."""
    with pytest.raises(
        ConfigurationError, match=r"AlertsService\.timeout is 'soon' \(or the variable AUTOGEN_TEAM_ALERTS_TIM"
    ):
        AlertsService(timeout="soon")


def test_a_secret_stays_secret_in_its_own_error():
    """The value is masked, and the rest of the error stays."""
    with pytest.raises(ConfigurationError) as raised:
        AlertsService(urls=("json://one", 5))

    assert "json://one" not in str(raised.value)


def test_an_unknown_field_is_refused_with_the_nearest_one():
    """A misspelt argument is not ignored silently."""
    with pytest.raises(ConfigurationError, match="LoggerService has no field 'levle'; did you mean 'level'"):
        LoggerService(levle="INFO")
    with pytest.raises(ConfigurationError, match="has no field 'zzz'; its fields are enable, app_name"):
        AlertsService(zzz=1)


def test_errors_can_be_caught_as_value_errors():
    """Callers that do not know our errors can catch ValueError."""
    with pytest.raises(ValueError, match="timeout"):
        AlertsService(timeout="soon")


def test_a_misspelt_variable_is_reported_with_the_nearest_right_name(monkeypatch):
    """A misspelt variable is not ignored silently."""
    monkeypatch.setenv("AUTOGEN_TEAM_LOGGER_LEVLE", "DEBUG")

    with pytest.warns(
        ConfigurationWarning, match="AUTOGEN_TEAM_LOGGER_LEVLE .* did you mean AUTOGEN_TEAM_LOGGER_LEVEL?"
    ) as warned:
        LoggerService()

    assert warned[0].filename == __file__


def test_a_misspelt_variable_of_another_service_is_not_reported(monkeypatch):
    """One mistake is reported by one service."""
    monkeypatch.setenv("AUTOGEN_TEAM_LOGGER_LEVLE", "DEBUG")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AlertsService()


@pytest.mark.parametrize("cls", [*SERVICES, GlobalContext])
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("AUTOGEN_TEAM_LOGER_LEVEL", "AUTOGEN_TEAM_LOGGER_LEVEL"),
        ("AUTOGENTEAM_LOGGER_LEVEL", "AUTOGEN_TEAM_LOGGER_LEVEL"),
        ("AUTOGEN_LOGGER_LEVEL", "AUTOGEN_TEAM_LOGGER_LEVEL"),
        ("AUTOGEN_TEAM_ML_FLOW_MODE", "AUTOGEN_TEAM_MLFLOW_MODE"),
        ("autogen_team_alerts_enable", "AUTOGEN_TEAM_ALERTS_ENABLE"),
        ("AUTOGEN_TEAM_STATEDIR", "AUTOGEN_TEAM_STATE_DIR"),
    ],
)
def test_a_variable_with_a_misspelt_prefix_is_reported_by_any_service(monkeypatch, cls, wrong, right):
    """If the prefix is misspelt, any service reports the variable."""
    monkeypatch.setenv(wrong, "x")

    with pytest.warns(ConfigurationWarning, match=f"{wrong} .* did you mean {right}?"):
        cls()


def test_variables_of_others_are_not_reported(monkeypatch):
    """Examples are similar names of other products, a context setting, and variables of alert commands."""
    for name in ("AUTOGEN_USE_DOCKER", "AUTOGENSTUDIO_APPDIR", "AUTO_UPDATE", "AUTOGEN_TEAM_MYSERVICE_PATH"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("AUTOGEN_TEAM_ALERT_ON", "always")
    monkeypatch.setenv("AUTOGEN_TEAM_ALERT_TITLE", "done")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cls in SERVICES:
            cls()


def test_services_are_values():
    """Services are comparable, hashable and immutable; they are pickled and copied by their fields."""
    service = LoggerService(level="DEBUG")

    assert service == LoggerService(level="DEBUG") != LoggerService()
    assert hash(service) == hash(LoggerService(level="DEBUG"))
    assert pickle.loads(pickle.dumps(service)) == copy.deepcopy(service) == service
    with pytest.raises(ValueError, match="frozen"):
        service.level = "INFO"


def test_a_pickled_service_does_not_read_the_environment_again(monkeypatch):
    """A worker gets the parent's settings."""
    data = pickle.dumps(LoggerService())
    monkeypatch.setenv("AUTOGEN_TEAM_LOGGER_LEVEL", "ERROR")

    assert pickle.loads(data).level == "INFO"


def test_passwords_are_masked_wherever_a_service_is_shown():
    """A service's repr appears in logs and tracebacks."""
    service = MlflowService(tracking_uri="http://bob:hunter2@mlflow")

    assert "hunter2" not in repr(service)
    assert "hunter2" not in str(service)
    assert "http://bob:***@mlflow" in repr(service)
    assert service.tracking_uri == "http://bob:hunter2@mlflow"
    assert all("hunter2" not in setting.value for setting in service.settings())


def test_the_state_folder_is_an_absolute_path(monkeypatch):
    """Any form of the path is made absolute; `~` is the home folder."""
    monkeypatch.setenv("AUTOGEN_TEAM_STATE_DIR", "~/state")
    assert MlflowService().state_dir == str(Path("~/state").expanduser())

    for given in ("state", Path("state")):
        assert MlflowService(state_dir=given).state_dir == str(Path.cwd() / "state")


def test_the_default_state_folder_is_shown(monkeypatch, tmp_path):
    """The default depends on the user and machine, so it is not passed to other processes."""
    monkeypatch.delenv("AUTOGEN_TEAM_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    service = MlflowService()
    [shown] = [one for one in service.settings() if one.name == "state_dir"]

    assert (service.state_dir, shown.source) == (None, "default")
    assert "AUTOGEN_TEAM_STATE_DIR" not in service.environment()
    if sys.platform == "linux":
        assert shown.value == str(tmp_path / "autogen-team")


@pytest.mark.parametrize("value", ["a file", " ", "nul\0", "~no-such-user/state"])
def test_an_invalid_state_folder_is_an_error_at_once(value):
    """The error is raised before the job logs anything."""
    Path("a file").touch()

    with pytest.raises(ConfigurationError, match=r"MlflowService\.state_dir is .*AUTOGEN_TEAM_STATE_DIR"):
        MlflowService(state_dir=value)


def test_importing_reads_no_variable():
    """An invalid value is an error when a service is created, not when the package is imported."""
    code = "import autogen_team.io.services, autogen_team.context; print('fine')"
    environment = {"AUTOGEN_TEAM_LOGGER_COLORIZE": "maybe", "MLFLOW_TRACKING_URI": "x", "PATH": ""}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert found.stdout == "fine\n"


def test_none_is_a_text_in_a_field_that_does_not_accept_none(monkeypatch):
    """`none` means None only in fields that accept None, in variables and on the command line."""
    monkeypatch.setenv("AUTOGEN_TEAM_ALERTS_APP_NAME", "none")

    assert AlertsService().app_name == "none"
    assert settings.none_or_text(AlertsService, "timeout", "None") is None


def test_a_dotenv_that_is_not_utf_8_is_named():
    """The error names `.env` and is not a UnicodeDecodeError."""
    Path(".env").write_bytes(b"NAME=caf\xe9\n")

    with pytest.raises(ConfigurationError, match=r"\.env is not valid UTF-8"):
        LoggerService()
    with pytest.raises(ConfigurationError, match=r"\.env is not valid UTF-8"):
        StateFolder()


def test_a_misspelt_variable_is_reported_once(monkeypatch):
    """A misspelt variable is reported once, however many services are created."""
    monkeypatch.setenv("AUTOGEN_TEAM_LOGGER_LVL", "DEBUG")

    with pytest.warns(ConfigurationWarning) as warned:
        LoggerService()
        GlobalContext()

    assert len(warned) == 1


@pytest.mark.parametrize(("cls", "field"), [(AlertsService, "flush_timeout"), (MlflowService, "connect_timeout")])
@pytest.mark.parametrize("value", ["inf", "nan", "1e9"])
def test_a_timeout_is_finite(cls, field, value):
    """Infinity is not accepted, because a job cannot wait forever."""
    with pytest.raises(ConfigurationError, match=field):
        cls(**{field: value})


def test_an_invalid_run_configuration_shows_no_secret():
    """The error names the field and does not show its value."""
    with pytest.raises(ConfigurationError, match="name: Input should be a valid string") as raised:
        MlflowService.RunConfig(name=b"\xff hunter2")

    assert "hunter2" not in str(raised.value)


def test_the_environment_of_a_service_makes_an_equal_one(monkeypatch):
    """A process with only these variables creates an equal service."""
    logger = LoggerService(sink="job.log", level="DEBUG", serialize=True, retention="3 days", redact=False)
    mlflow = MlflowService(tracking_uri="http://127.0.0.1:5000", experiment_name="digits", connect_timeout=1.5)
    for name, value in {**logger.environment(), **mlflow.environment()}.items():
        monkeypatch.setenv(name, value)

    assert LoggerService() == logger
    assert MlflowService() == mlflow


def test_the_environment_of_a_service_is_short_and_holds_no_secret(monkeypatch):
    """A default is omitted, unless it overrides an inherited variable."""
    assert LoggerService().environment() == {}
    assert AlertsService(urls=["json://bob:hunter2@127.0.0.1"]).environment() == {}

    monkeypatch.setenv("AUTOGEN_TEAM_LOGGER_LEVEL", "DEBUG")
    assert LoggerService(level="INFO").environment() == {"AUTOGEN_TEAM_LOGGER_LEVEL": "INFO"}


def test_a_name_without_a_value_in_dotenv_is_ignored():
    """A `.env` line without `=` sets no value, and creates no file of that name."""
    Path(".env").write_text("AUTOGEN_TEAM_LOGGER_SINK\nAUTOGEN_TEAM_LOGGER_LEVEL=DEBUG\n")

    assert (LoggerService().sink, LoggerService().level) == ("stderr", "DEBUG")
