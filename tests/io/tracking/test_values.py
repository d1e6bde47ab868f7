"""An invalid value is refused at the call, as by plain MLflow, and nothing else is lost."""

from __future__ import annotations

import re
from fractions import Fraction

import mlflow
import numpy as np
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from mlflow.exceptions import MlflowException

from autogen_team._capture import lifecycle


def start_plain(uri: str, experiment: str) -> None:
    """Point plain MLflow at the store."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    mlflow.set_experiment(experiment)


def without_numbers(error: Exception) -> str:
    """Return the message of an exception without digits, such as times."""
    return re.sub(r"\d+", "", str(error))


BAD_METRICS = [None, "abc", [1.0], {}, np.array([1.0, 2.0]), 1 + 2j, 10**400, object()]


@pytest.mark.parametrize("value", BAD_METRICS, ids=lambda value: repr(value)[:20])
def test_a_bad_value_is_refused_as_plain_mlflow_refuses_it(store_uri, start_session, value):
    """A bad metric value raises the same exception as in plain MLflow; all other values are stored."""
    start_plain(store_uri, "tests")
    with mlflow.start_run(), pytest.raises(Exception) as plain:
        mlflow.log_metric("loss", value)
    started = start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        for step in range(100):
            mlflow.log_metric("loss", step, step=step)
            if step == 50:
                with pytest.raises(type(plain.value)) as durable:
                    mlflow.log_metric("loss", value)
                assert type(durable.value) is type(plain.value)
                assert without_numbers(durable.value) == without_numbers(plain.value)
    started.stop()

    client = mlflow.MlflowClient(store_uri)
    assert [one.value for one in client.get_metric_history(run.info.run_id, "loss")] == list(range(100))
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("key", ["a(b)", "", "../x", ".", "a//b", "x" * 251, "line\nbreak", None, 7])
@pytest.mark.parametrize("log", [lambda key: mlflow.log_metric(key, 1), lambda key: mlflow.log_param(key, 1),
                                 lambda key: mlflow.set_tag(key, 1), lambda key: mlflow.log_metrics({key: 1.0})],
                         ids=["metric", "param", "tag", "metrics"])  # fmt: skip
def test_a_bad_key_is_refused_as_plain_mlflow_refuses_it(store_uri, start_session, log, key):
    """A bad key of a metric, parameter or tag has the same outcome as in plain MLflow."""

    def outcome() -> str:
        try:
            log(key)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "accepted"

    start_plain(store_uri, "tests")
    with mlflow.start_run():
        plain = outcome()
    start_session(store_uri)
    with lifecycle.open_run(name="train"):
        assert outcome() == plain


@pytest.mark.parametrize("fields", [{"step": 2**63}, {"step": -(2**64)}, {"timestamp": 2**63}, {"timestamp": -5}])
def test_a_number_that_no_database_can_store_is_refused(store_uri, start_session, fields):
    """A step or time that no database can store is refused at the call; later metrics are stored."""
    started = start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_metric("loss", 1.0)
        with pytest.raises(MlflowException):
            mlflow.log_metric("loss", 2.0, **fields)
        mlflow.log_metric("after", 3.0)
    started.stop()

    assert mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data.metrics == {"loss": 1.0, "after": 3.0}


NAN, INFINITE, SURROGATE = float("nan"), float("inf"), "caf\udce9.csv"


def log_input(run_id: str) -> None:
    """Log a dataset with a source and a tag that are not valid UTF-8."""
    dataset = Dataset("rows", "digest", "local", SURROGATE)
    mlflow.MlflowClient().log_inputs(run_id, [DatasetInput(dataset, [InputTag("file", SURROGATE)])])


ODD = {
    "step NaN": lambda _: mlflow.log_metric("loss", 1.0, step=NAN),
    "step infinite": lambda _: mlflow.log_metric("loss", 1.0, step=INFINITE),
    "step complex": lambda _: mlflow.log_metric("loss", 1.0, step=1 + 1j),
    "time NaN": lambda _: mlflow.log_metric("loss", 1.0, timestamp=NAN),
    "step NaN in a batch": lambda run: mlflow.MlflowClient().log_batch(run, [Metric("loss", 1.0, 0, NAN)]),
    "parameter": lambda _: mlflow.log_param("file", SURROGATE),
    "parameters": lambda _: mlflow.log_params({"file": SURROGATE, "depth": 3}),
    "tag": lambda _: mlflow.set_tag("file", SURROGATE),
    "tags": lambda _: mlflow.set_tags({"file": SURROGATE}),
    "key": lambda _: mlflow.set_tag(SURROGATE, 1),
    "name": lambda run: mlflow.MlflowClient().update_run(run, name=SURROGATE),
    "dataset": log_input,
    "dataset of a metric": lambda run: mlflow.MlflowClient().log_metric(
        run, "loss", 1.0, dataset_name=SURROGATE, dataset_digest="d"
    ),
    "end": lambda run: mlflow.MlflowClient().set_terminated(run, end_time=NAN),
}
"""Values that no database or server can store: some numbers, and a file name that is not valid UTF-8."""


@pytest.mark.parametrize("store", ["store_uri", "mlflow_server"])
def test_a_value_that_no_store_can_hold_raises_mlflow_s_exception(request, start_session, store):
    """Values that no store can hold raise MLflow's exception at the call; later items are stored."""
    uri = request.getfixturevalue(store)
    started = start_session(uri)
    with lifecycle.open_run(name="train") as run:
        for log in ODD.values():
            with pytest.raises(MlflowException):
                log(run.info.run_id)
        mlflow.log_metric("after", 1.0, step=np.int64(3))
    started.stop()

    stored = mlflow.MlflowClient(uri).get_run(run.info.run_id)
    assert (stored.info.status, stored.data.metrics, stored.data.params) == ("FINISHED", {"after": 1.0}, {})


def test_refusals_of_asynchronous_calls_are_raised_by_wait(store_uri, start_session, caplog):
    """Asynchronous calls raise their refusals in `wait`, as in plain MLflow, with one warning."""
    started = start_session(store_uri)
    client = mlflow.MlflowClient()
    with lifecycle.open_run(name="train") as run:
        mlflow.log_param("depth", 1)
        refused = [
            mlflow.log_param("depth", 2, synchronous=False),
            mlflow.log_metric("loss", "not a number", synchronous=False),
            mlflow.log_metrics({"bad:key!?": 1.0, "good": 1.0}, synchronous=False),
            mlflow.set_tag("k" * 300, 1, synchronous=False),
            client.log_metric("0" * 32, "loss", 1.0, synchronous=False),
        ]
        mlflow.log_metric("after", 1.0, synchronous=False).wait()
        for operations in refused:
            with pytest.raises(MlflowException, match="failures occurred"):
                operations.wait()
    started.stop()

    stored = mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data
    assert (stored.params, stored.metrics) == ({"depth": "1"}, {"good": 1.0, "after": 1.0})
    (warning,) = [record.message for record in caplog.records if "synchronous=False" in record.message]
    assert "Changing param values is not allowed" in warning


def test_a_boolean_step_is_stored_as_a_number(store_uri, start_session):
    """A step of True is stored as 1."""
    start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_metric("loss", 1.0, step=True)
        (found,) = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")

    assert found.step == 1


def test_a_time_of_another_number_type_is_stored_as_an_integer(store_uri, start_session):
    """A time given as a boolean, a numpy integer or a fraction is stored as an integer."""
    start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_metric("loss", 1.0, timestamp=True)
        mlflow.log_metric("loss", 2.0, timestamp=np.int64(5))
        mlflow.log_metric("loss", 3.0, timestamp=Fraction(7))
        found = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")

    assert [metric.timestamp for metric in found] == [1, 5, 7]


def test_an_item_that_the_database_refuses_later_is_set_aside(store_uri, start_session, tmp_path):
    """An item that the database refuses later is noted with its reason, and everything else arrives."""
    started = start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_metric("before", 1.0)
        mlflow.log_metric("lost", 2.0, model_id="m-none")
        mlflow.log_metric("after", 3.0)
    started.stop()

    stored = mlflow.MlflowClient(store_uri).get_run(run.info.run_id)
    assert stored.info.status == "FINISHED"
    assert {"before", "after"} <= stored.data.metrics.keys()
    assert "m-none" in (tmp_path / "state" / "refused.jsonl").read_text()


def test_the_good_metrics_of_a_bad_call_are_stored(store_uri, start_session):
    """The good metrics of a call with bad ones are stored."""
    started = start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        with pytest.raises(MlflowException):
            mlflow.log_metrics({"good": 1.0, "bad": None, "good too": 2.0})
        with pytest.raises(MlflowException):
            started.log_metrics({"fast": 1.0, "fast and bad": None, "fast(": 1.0, "fast too": np.float64(2)}, 1)
    started.stop()

    stored = mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data.metrics
    assert stored == {"good": 1.0, "good too": 2.0, "fast": 1.0, "fast too": 2.0}


@pytest.mark.parametrize("log", [lambda: mlflow.log_param("depth", 5), lambda: mlflow.log_params({"depth": 5, "x": 1})])
def test_a_changed_parameter_is_refused_as_plain_mlflow_refuses_it(store_uri, start_session, log):
    """A changed parameter is refused at the call with MLflow's message, also in a resumed run."""
    start_plain(store_uri, "tests")
    with mlflow.start_run() as before:
        mlflow.log_param("depth", 3)
        with pytest.raises(MlflowException) as plain:
            log()
    started = start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_param("depth", 3)
        with pytest.raises(MlflowException) as durable:
            log()
        assert durable.value.message == plain.value.message.replace(before.info.run_id, run.info.run_id)
    with (
        lifecycle.open_run(name="resumed", run_id=run.info.run_id),
        pytest.raises(MlflowException, match="Changing param"),
    ):
        log()
    started.stop()

    assert mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data.params == {"depth": "3"}
