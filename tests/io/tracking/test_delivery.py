"""Turning entries into requests: within the limits, in order, and around items that the store refuses."""

from __future__ import annotations

import json

import mlflow
import pytest
from mlflow.utils import mlflow_tags, validation

from autogen_team._ship import backend, batches, mlflow_backend
from autogen_team._ship.batches import Delivery, _requests


def test_the_limits_are_those_of_mlflow():
    """The limits are duplicated in our code, because shipping to a server does not load MLflow."""
    assert validation.MAX_METRICS_PER_BATCH == batches.MAX_METRICS
    assert validation.MAX_PARAMS_TAGS_PER_BATCH == batches.MAX_PARAMS_OR_TAGS
    assert validation.MAX_ENTITIES_PER_BATCH == batches.MAX_ITEMS
    assert mlflow_tags.MLFLOW_PARENT_RUN_ID == batches.PARENT_TAG


def test_requests_keep_to_the_limits_of_the_server():
    """Requests have at most 1000 metrics, 100 parameters and 100 tags; the end of a run follows its items."""
    found = [
        *({"op": "metrics", "run": "a", "t": 1, "step": n, "values": {"loss": n, "acc": n}} for n in range(1200)),
        {"op": "params", "run": "a", "values": {str(n): "x" for n in range(250)}},
        *({"op": "tags", "run": "b", "values": {str(n): "x"}} for n in range(150)),
        {"op": "info", "run": "a", "status": "FINISHED"},
        {"op": "metrics", "run": "a", "t": 1, "step": 0, "values": {"late": 1.0}},
    ]
    requests = list(_requests(found))

    sent = [request for request in requests if isinstance(request, backend.Batch)]
    assert max(len(batch.metrics) for batch in sent) <= 1000
    assert max(len(batch.params) for batch in sent) <= 100
    assert max(len(batch.tags) for batch in sent) <= 100
    assert max(len(batch) for batch in sent) <= 1000
    assert sum(len(batch.metrics) for batch in sent) == 2401
    end = next(at for at, request in enumerate(requests) if not isinstance(request, backend.Batch))
    before = [request for request in requests[:end] if request.run_id == "a"]
    assert sum(len(batch.params) for batch in before) == 250
    assert sum(len(batch.metrics) for batch in before) == 2400


class Picky:
    """A backend that refuses bad tags and all batches of deleted runs, and counts requests."""

    def __init__(self, bad=(), gone=(), away_after=10**9):
        self.bad, self.gone, self.away_after = bad, gone, away_after
        self.requests = 0
        self.taken = {}

    def log(self, batch):
        """Accept the batch, or raise as MLflow's store does."""
        self.requests += 1
        with mlflow_backend._translated():
            if self.requests > self.away_after:
                raise ConnectionError("away")
            if batch.run_id in self.gone or set(self.bad) & set(batch.tags):
                raise ValueError("A string literal cannot contain NUL")
        self.taken |= batch.tags


TAGS = [{"op": "tags", "run": "a", "values": {f"t{n}": "x"}} for n in range(100)]


def test_one_bad_item_does_not_affect_the_others(tmp_path):
    """One bad tag among 100 is refused, and the other 99 are delivered in fewer than 30 requests."""
    picky = Picky(bad=["t42"])
    delivery = Delivery(picky, tmp_path)
    delivery.deliver(TAGS)

    assert len(picky.taken) == 99
    assert delivery.refused == 1
    assert picky.requests < 30


def test_an_outage_is_not_a_refusal(tmp_path):
    """An outage while a bad item is being isolated does not count as a refusal."""
    delivery = Delivery(Picky(bad=["t42"], away_after=4), tmp_path)

    with pytest.raises(backend.Unreachable, match="away"):
        delivery.deliver(TAGS)

    assert delivery.refused == 0


def test_items_of_a_deleted_run_are_refused_together(tmp_path):
    """All items of a deleted run are refused in two requests."""
    picky = Picky(gone=["a"])
    delivery = Delivery(picky, tmp_path)
    delivery.deliver(TAGS)

    assert picky.requests == 2
    assert delivery.refused == 100
    (line,) = (tmp_path / "refused.jsonl").read_text().splitlines()
    assert len(json.loads(line)["items"]) == 100


@pytest.mark.parametrize("database", ["store_uri", "postgres_uri", "mlflow_server"])
def test_an_empty_batch_checks_the_run(request, database):
    """In each kind of store, an empty batch is accepted if the run exists, and refused if it is deleted."""
    uri = request.getfixturevalue(database)
    client = mlflow.MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    destination = mlflow_backend.of(mlflow_backend.plain_store(uri), uri)

    destination.log(backend.Batch(run_id))
    client.delete_run(run_id)
    with pytest.raises(backend.Refused):
        destination.log(backend.Batch(run_id))
