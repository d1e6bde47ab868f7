"""`log_config`: log a job's configuration as parameters that MLflow accepts, and completely as `config.yaml`."""

from __future__ import annotations

import argparse
import datetime as dt
import enum
import sys
import types
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import numpy as np
import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils import validation

from autogen_team import GlobalContext, MlflowService
from autogen_team._capture import configs
from autogen_team.errors import ConfigurationError, NotStartedError


class Kind(enum.Enum):
    """An enum of strings."""

    ADAM = "adam"


class Level(enum.IntEnum):
    """An enum of numbers."""

    HIGH = 3


@dataclass
class Optimizer:
    """A nested configuration."""

    lr: float = 0.1
    kind: Kind = Kind.ADAM
    betas: tuple[float, ...] = (0.9, 0.99)


@dataclass
class Config:
    """A configuration as a dataclass."""

    optimizer: Optimizer = field(default_factory=Optimizer)
    data: Path = Path("data/train.csv")
    layers: list[dict[str, int]] = field(default_factory=lambda: [{"units": 64}, {"units": 10}])


class Model(pydantic.BaseModel):
    """The same configuration as a pydantic model."""

    model_config = pydantic.ConfigDict(extra="allow")
    optimizer: Optimizer = Optimizer()
    api_key: pydantic.SecretStr = pydantic.SecretStr("example-secret")


OPTIMIZER = {"lr": 0.1, "kind": "adam", "betas": [0.9, 0.99]}
SAME = {
    "a mapping": ({"optimizer": Optimizer()}, {"optimizer": OPTIMIZER}),
    "another mapping": (OrderedDict(a=1), {"a": 1}),
    "a dataclass": (
        Config(),
        {"optimizer": OPTIMIZER, "data": "data/train.csv", "layers": [{"units": 64}, {"units": 10}]},
    ),
    "pydantic": (Model(more=1), {"optimizer": OPTIMIZER, "api_key": "**********", "more": 1}),
    "argparse": (argparse.Namespace(epochs=3, out=None), {"epochs": 3, "out": None}),
    "a simple namespace": (types.SimpleNamespace(a=types.SimpleNamespace(b=1)), {"a": {"b": 1}}),
    "a service": (
        MlflowService.RunConfig(name="train"),
        {"name": "train", **dict.fromkeys(["description", "tags"]), "log_system_metrics": True, "nested": False}
        | {**dict.fromkeys(["parent_run_id", "run_id", "job"]), "stale": 300.0},
    ),
    "values of all kinds": (
        {
            "numpy": np.float32(0.5),
            "level": Level.HIGH,
            "day": dt.date(2026, 1, 2),
            "function": Path.home,
            "type": Path,
            "set": {2, 1},
            3: True,
            "text": np.str_("x"),
        },
        {
            "numpy": 0.5,
            "level": 3,
            "day": "2026-01-02",
            "function": "pathlib.Path.home",
            "type": "pathlib.Path",
            "set": [1, 2],
            "3": True,
            "text": "x",
        },
    ),
}


@pytest.mark.parametrize(("config", "expected"), SAME.values(), ids=SAME)
def test_a_configuration_of_any_library_becomes_plain(config, expected):
    """Configurations of any library become types that YAML has."""
    found = configs.plain(config)

    assert found == expected
    assert yaml.safe_load(yaml.safe_dump(found)) == expected


class OmegaConf:
    """Stand-in for omegaconf, which is not installed, with the functions that `log_config` uses."""

    @staticmethod
    def to_container(config, *, resolve):
        if resolve and "broken" in config.content:
            raise ValueError("interpolation key 'x' not found")
        return config.content | {"resolved": resolve}


def test_a_config_of_omegaconf_is_resolved(monkeypatch):
    """An unresolvable configuration is logged unresolved."""
    library = types.ModuleType("omegaconf")
    library.OmegaConf = OmegaConf
    monkeypatch.setitem(sys.modules, "omegaconf", library)
    kind = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})
    whole, broken = kind(), kind()
    whole.content, broken.content = {"a": 1}, {"broken": "${x}"}

    assert configs.plain(whole) == {"a": 1, "resolved": True}
    assert configs.plain({"inner": broken}) == {"inner": {"broken": "${x}", "resolved": False}}


def test_a_model_of_attrs_is_accepted():
    """Models of attrs are recognized by duck typing."""
    attrs = pytest.importorskip("attrs")
    kind = attrs.make_class("Config", ["lr"])

    assert configs.plain(kind(lr=1)) == {"lr": 1}


def test_a_config_that_contains_itself_ends():
    """A recursive reference, as in a graph of modules, becomes `...`."""
    config: dict = {"a": 1}
    config["self"] = config

    assert configs.plain(config) == {"a": 1, "self": "..."}


def test_names_and_values_are_valid_in_mlflow():
    """Our limits are those of MLflow, and longer names and values are cut."""
    assert configs.LONGEST_NAME == validation.MAX_ENTITY_KEY_LENGTH
    assert configs.LONGEST_VALUE == validation.MAX_PARAM_VAL_LENGTH
    assert configs.MOST_PARAMETERS == validation.MAX_PARAMS_TAGS_PER_BATCH
    params = configs.flattened({"a": {"b": {}, "c": []}, "lr@1": 1, "../x": 2, "n" * 300: "v" * 7000, "": 3})

    assert params["a.b"] == "{}"
    assert params["a.c"] == "[]"
    assert params["lr_1"] == "1"
    assert params["_.._x"] == "2"
    assert params["_"] == "3"
    long = next(name for name in params if name.startswith("nnn"))
    assert (len(long), len(params[long])) == (250, 6000)
    assert params[long].endswith("...")


def test_names_that_become_the_same_stay_apart():
    """Examples are `a@b` and `a#b`, and names that are cut."""
    params = configs.flattened({"a@b": 1, "a#b": 2, "x" * 260 + "1": 3, "x" * 260 + "2": 4})

    assert sorted(params.values()) == ["1", "2", "3", "4"]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=300), PLAIN, max_size=5))
def test_any_configuration_has_names_that_are_valid_in_mlflow(config):
    """MLflow's own checks accept the names of any configuration."""
    for name, value in configs.flattened(configs.plain(config)).items():
        validation._validate_param_name(name)
        validation._validate_length_limit("key", validation.MAX_ENTITY_KEY_LENGTH, name)
        assert len(value) <= validation.MAX_PARAM_VAL_LENGTH


@pytest.fixture
def context(store_uri, monkeypatch):
    """Return a running context."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.setenv("AUTOGEN_TEAM_MLFLOW_AUTOLOG_DISABLE", "true")
    with GlobalContext() as found:
        yield found


def test_a_configuration_is_in_the_run(context, store_uri):
    """The run has the parameters, more than one request can carry, and the file, both without secrets."""
    many = {f"p{number}": number for number in range(250)}
    with context.run("train") as run:
        context.log_config({"db": {"password": "example-secret"}, "note": "token sk-" + "a1" * 20, **many})

    client = mlflow.MlflowClient(store_uri)
    params = client.get_run(run.info.run_id).data.params
    assert len(params) == 252
    assert (params["db.password"], params["note"], params["p249"]) == ("***", "token ***", "249")
    text = Path(client.download_artifacts(run.info.run_id, "config.yaml")).read_text()
    assert text.startswith("db:\n  password: '***'\nnote: token ***\np0: 0\n")
    assert yaml.safe_load(text)["p249"] == 249


def test_a_parameter_that_changes_is_refused_as_mlflow_does(context):
    """Logging the same value again is accepted."""
    with context.run("train"):
        context.log_config({"lr": 0.1})
        context.log_config({"lr": 0.1})
        with pytest.raises(mlflow.MlflowException, match="lr"):
            context.log_config({"lr": 0.2})


def test_a_file_that_cannot_be_attached_does_not_stop_the_job(context, monkeypatch, caplog, store_uri):
    """The parameters are still logged."""

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(mlflow.MlflowClient, "log_text", fail)
    with context.run("train") as run:
        context.log_config({"lr": 0.1})

    assert mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data.params == {"lr": "0.1"}


@pytest.mark.parametrize("config", [3, "text", [1], Kind.ADAM, Config, object()], ids=range(6))
def test_other_values_are_refused(context, config):
    """The error says what `log_config` accepts."""
    with (
        context.run("train"),
        pytest.raises(ConfigurationError, match="is not a configuration: log_config takes a mapping"),
    ):
        context.log_config(config)


def test_without_a_run_it_is_refused(context):
    """Without a run, `log_config` raises, as `log_metrics` does."""
    with pytest.raises(NotStartedError, match="no run is open"):
        context.log_config({"lr": 0.1})
    with pytest.raises(NotStartedError, match="is not running"):
        MlflowService().log_config({"lr": 0.1})
