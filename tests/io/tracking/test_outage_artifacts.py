"""Artifacts while their server is down, or refuses them."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest

from autogen_team._capture import lifecycle


def names_of(server, run) -> list[str]:
    """Return the paths of the files of a run on the server's disk."""
    folder = server.folder / "artifacts" / run.info.experiment_id / run.info.run_id / "artifacts"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def texts_of(server, run) -> dict[str, str]:
    """Return the texts of the text files of a run on the server's disk."""
    folder = server.folder / "artifacts" / run.info.experiment_id / run.info.run_id / "artifacts"
    return {name: (folder / name).read_text() for name in names_of(server, run) if name.endswith(".txt")}


def test_artifacts_wait_beside_the_journal(server, start_session):
    """Files, folders and texts logged in an outage arrive, and the last version of a file wins."""
    started = start_session(server.uri)
    Path("folder/sub").mkdir(parents=True)
    Path("folder/sub/inner.txt").write_text("inner")
    with lifecycle.open_run(name="train") as run:
        mlflow.log_text("before", "report.txt")
        server.kill()
        mlflow.log_text("during", "report.txt")
        mlflow.log_artifact("folder/sub/inner.txt", "single")
        mlflow.log_artifacts("folder", "whole")
        server.start()
        mlflow.log_text("after", "report.txt")
    started.stop()

    assert texts_of(server, run) == {
        "report.txt": "after",
        "single/inner.txt": "inner",
        "whole/sub/inner.txt": "inner",
    }


def test_images_wait_like_other_artifacts(server, start_session):
    """Images logged in an outage arrive, although MLflow uploads them on its own thread."""
    started = start_session(server.uri)
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_image(pixels, key="before", step=1)
        mlflow.flush_artifact_async_logging()
        arrived = names_of(server, run)
        server.kill()
        mlflow.log_image(pixels, key="during", step=2)
        mlflow.flush_artifact_async_logging()
        server.start()
        mlflow.log_image(pixels, key="after", step=3)
    started.stop()

    assert len(arrived) == 2  # the image, and a small one
    assert [len([name for name in names_of(server, run) if key in name]) for key in ("before", "during", "after")] == [
        2,
        2,
        2,
    ]


@pytest.mark.parametrize("status", [413, 422])
def test_a_refused_artifact_does_not_delay_others(proxy, mlflow_server, start_session, tmp_path, status):
    """A refused artifact is set aside in a private folder, and everything behind it arrives."""
    started = start_session(proxy.uri)
    with lifecycle.open_run(name="train") as run:
        proxy.status = 503
        mlflow.log_text("too large", "large.txt")
        mlflow.log_metric("after", 1.0)
        proxy.status, proxy.concerning = status, "mlflow-artifacts"
    started.stop()

    stored = mlflow.MlflowClient(mlflow_server).get_run(run.info.run_id)
    assert (stored.info.status, stored.data.metrics) == ("FINISHED", {"after": 1.0})
    (line,) = (tmp_path / "state" / "refused.jsonl").read_text().splitlines()
    noted = json.loads(line)
    assert f"{status} " in noted["reason"]
    aside = Path(noted["reason"].partition("; it is in ")[2])
    assert (aside / "large.txt").read_text() == "too large"
    assert aside.parent == tmp_path / "state" / "refused"
    assert aside.parent.stat().st_mode & 0o777 == 0o700


def test_an_artifact_of_a_purged_run_does_not_delay_others(proxy, mlflow_server, start_session):
    """An artifact of a purged run does not delay the delivery of other items."""
    started = start_session(proxy.uri)
    with lifecycle.open_run(name="other") as other:
        pass
    with lifecycle.open_run(name="train") as run:
        proxy.status = 503
        mlflow.MlflowClient().log_text(other.info.run_id, "text", "notes.txt")
        mlflow.log_metric("after", 1.0)
        mlflow.tracking._tracking_service.utils._artifact_repos_cache.clear()
        gone = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}).encode()
        proxy.answer, proxy.status, proxy.concerning = gone, 404, "runs/get?"
    started.stop()

    assert mlflow.MlflowClient(mlflow_server).get_run(run.info.run_id).data.metrics == {"after": 1.0}
