"""A proxy or a firewall before the server that blocks one item and lets everything else through."""

from __future__ import annotations

import json
import logging

import mlflow
import pytest

from autogen_team._capture import lifecycle, write_behind
from autogen_team._ship import recovery
from autogen_team._spool import index

WORD = "forbidden-word"


def put_aside(state) -> list[dict[str, object]]:
    """Return the entries of `refused.jsonl`."""
    path = state / "refused.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def said(caplog) -> list[str]:
    """Return the logged errors."""
    return [record.message for record in caplog.records if record.levelno == logging.ERROR]


def answer_to_the_word(proxy, status: int) -> None:
    """Make the proxy answer any request that contains the word with an error page."""
    proxy.status = status
    proxy.answer = b"<html>\n<head><title>Request rejected</title></head></html>"
    proxy.mentioning = WORD.encode()


@pytest.mark.parametrize("status", [413, 403, 400, 406, 200])
def test_one_blocked_item_does_not_delay_later_items(proxy, mlflow_server, start_session, caplog, tmp_path, status):
    """A blocked item is set aside with its reason, and all later items and runs arrive."""
    started = start_session(proxy.uri)
    with lifecycle.open_run(name="first") as first:
        mlflow.log_metric("before", 1)
        assert write_behind.of(proxy.uri).store.flush()
        answer_to_the_word(proxy, status)
        for number in range(40):
            mlflow.log_param(f"p{number}", WORD if number == 17 else number)
        mlflow.log_metric("after", 2)
    with lifecycle.open_run(name="second") as second:
        mlflow.log_metric("m", 3)
    started.stop()

    client = mlflow.MlflowClient(mlflow_server)
    stored = client.get_run(first.info.run_id)
    assert (stored.info.status, stored.data.metrics) == ("FINISHED", {"before": 1, "after": 2})
    assert len(stored.data.params) == 39
    stored = client.search_runs(
        [second.info.experiment_id],
        f"tags.mlflow.runName = 'second' and attributes.start_time >= {second.info.start_time}",
    )[0]
    assert (stored.info.status, stored.data.metrics) == ("FINISHED", {"m": 3})
    (noted,) = put_aside(tmp_path / "state")
    assert noted["items"] == [{"key": "p17", "value": WORD}]
    assert "Request rejected" in noted["reason"]
    (error,) = said(caplog)
    assert error.startswith(
        f"a proxy or firewall in front of the MLflow store blocks an item of run {first.info.run_id}"
    )


@pytest.mark.parametrize("status", [403, 400])
def test_a_proxy_that_blocks_everything_refuses_nothing(proxy, mlflow_server, start_session, caplog, tmp_path, status):
    """While a proxy blocks all requests no item is refused, and all items arrive once it lets them through."""
    started = start_session(proxy.uri)
    with lifecycle.open_run(name="train") as run:
        proxy.status = status
        mlflow.log_metrics({"a": 1.0, "b": 2.0})
        for _ in range(6):
            assert not write_behind.of(proxy.uri).flush(10.0)
        proxy.status = 200
    started.stop()

    assert mlflow.MlflowClient(mlflow_server).get_run(run.info.run_id).data.metrics == {"a": 1.0, "b": 2.0}
    assert put_aside(tmp_path / "state") == []
    (warning, _) = [record.message for record in caplog.records if "the MLflow store at" in record.message]
    assert f"accepts no data: it answers {status} the proxy is sorry. The job continues" in warning


def test_recovery_delivers_entries_around_the_blocked_item(proxy, mlflow_server, start_session, tmp_path):
    """Recovery finds the blocked item in one attempt, sets it aside, and delivers the rest of the journal."""
    started = start_session(proxy.uri, flush_timeout=0.001)
    with lifecycle.open_run(name="train") as run:
        assert write_behind.of(proxy.uri).store.flush()
        proxy.status = 502
        mlflow.log_params({"note": WORD, "depth": 3})
        mlflow.log_metric("loss", 1.0)
    started.stop()
    answer_to_the_word(proxy, 403)
    (found,) = index.find(tmp_path / "state")
    result = recovery.recover(found, proxy.uri, proxy.uri, tmp_path / "state")

    stored = mlflow.MlflowClient(mlflow_server).get_run(run.info.run_id)
    assert (result.problem, result.refused) == ("", 1)
    assert (stored.info.status, stored.data.params, stored.data.metrics) == ("FINISHED", {"depth": "3"}, {"loss": 1.0})


def test_a_run_is_created_and_ended_without_its_blocked_parts(proxy, mlflow_server, start_session, tmp_path):
    """A run begun in an outage is created and ended without its blocked tag and blocked name."""
    started = start_session(proxy.uri)
    with lifecycle.open_run(name="outer"):
        proxy.status = 502
        mlflow.log_metric("cut", 1)
        write_behind.of(proxy.uri).flush(1.0)
        inner = mlflow.start_run(run_name="inner", tags={"note": WORD, "fold": "1"}, nested=True)
        mlflow.log_metric("m", 1)
        mlflow.MlflowClient().update_run(inner.info.run_id, name=WORD)
        mlflow.end_run()
        answer_to_the_word(proxy, 403)
    started.stop()

    local = f"tags.`autogen_team.local_run_id` = '{inner.info.run_id}'"
    (stored,) = mlflow.MlflowClient(mlflow_server).search_runs([inner.info.experiment_id], local)
    assert (stored.info.run_name, stored.info.status, stored.data.metrics) == ("inner", "FINISHED", {"m": 1})
    assert (stored.data.tags["fold"], "note" in stored.data.tags) == ("1", False)
    assert len(put_aside(tmp_path / "state")) == 2
