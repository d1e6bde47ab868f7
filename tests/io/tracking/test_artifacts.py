"""Artifacts do not block the job: they wait as copies, can be read at once, and are uploaded from outside."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import boto3
import matplotlib.figure
import mlflow
import numpy as np
import pytest
from mlflow.entities import FileInfo, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import (
    get_artifact_repository,
    get_registered_artifact_repositories,
)
from moto.server import ThreadedMotoServer

from autogen_team._capture import artifacts, lifecycle, write_behind
from autogen_team._spool import files as spool
from autogen_team._spool import index

pytestmark = pytest.mark.usefixtures("forked_children")

KILLS = int(os.environ.get("KILLS", "5"))
"""Rounds of kills; `make test-kills` runs 200."""
JOB = """
import os, sys, mlflow
from autogen_team import GlobalContext
from autogen_team.io.services import LoggerService, MlflowService
services = {"logger_service": LoggerService(sink="job.log"), "mlflow_service": MlflowService(autolog_disable=True)}
with GlobalContext(**services) as context, context.run("job", log_system_metrics=False) as run:
    print("run", run.info.run_id, flush=True)
    BODY
"""
LOG_LARGE = """
    for n in range(3):
        with open("large.bin", "wb") as file:
            file.write(bytes([n]) * 2_100_000)
        mlflow.log_artifact("large.bin", f"part{n}")
        mlflow.log_text(f"small {n}", f"part{n}/small.txt")
        mlflow.log_metric("loss", n, step=n)
    print("logged", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def held(proxy):
    """Return a proxy that rejects artifacts until its status is 200."""
    proxy.status, proxy.concerning = 503, "PUT "
    return proxy


def arrived(uri: str, run_id: str, path: str | None = None) -> list[str]:
    """Return the paths of all files of a run on the server."""
    found = []
    for one in mlflow.MlflowClient(uri).list_artifacts(run_id, path):
        found += arrived(uri, run_id, one.path) if one.is_dir else [one.path]
    return sorted(found)


def content(uri: str, run_id: str, path: str) -> bytes:
    """Return the content of a file on the server."""
    return Path(mlflow.MlflowClient(uri).download_artifacts(run_id, path)).read_bytes()


def test_no_way_to_log_a_file_waits_for_the_upload(held, mlflow_server, start_session, tmp_path):
    """Files, folders, texts, dicts, figures, images and tables can be read at once, and arrive later."""
    started = start_session(held.uri)
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "file.bin").write_bytes(b"\0" * 1000)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_artifact(str(tmp_path / "folder" / "inner" / "file.bin"), "single")
        mlflow.log_artifact(str(tmp_path / "folder"))
        mlflow.log_artifacts(str(tmp_path / "folder"), "all")
        mlflow.log_text("words", "notes/words.txt")
        mlflow.log_dict({"a": 1}, "configuration.json")
        mlflow.log_figure(matplotlib.figure.Figure(), "figure.png")
        mlflow.log_image(np.zeros((4, 4, 3), dtype=np.uint8), "image.png")
        mlflow.log_table({"x": [1]}, "table.json")
        mlflow.log_table({"x": [2]}, "table.json")
        expected = [
            "all/inner/file.bin",
            "configuration.json",
            "figure.png",
            "folder/inner/file.bin",
            "image.png",
            "notes/words.txt",
            "single/file.bin",
            "table.json",
        ]
        assert arrived(held.uri, run.info.run_id) == expected
        assert arrived_plainly(mlflow_server, run) == []
        assert list(mlflow.load_table("table.json", run_ids=[run.info.run_id])["x"]) == [1, 2]
        held.status = 200
    started.stop()

    assert arrived(mlflow_server, run.info.run_id) == expected
    assert content(mlflow_server, run.info.run_id, "single/file.bin") == b"\0" * 1000


def arrived_plainly(uri: str, run) -> list[str]:
    """Return the names at the top of a run's artifacts from MLflow's own repository."""
    from autogen_team._ship import files

    with files.plainly():
        return [one.path for one in get_artifact_repository(run.info.artifact_uri, uri).list_artifacts()]


def test_a_file_may_be_overwritten_once_it_is_logged(held, mlflow_server, start_session):
    """Each call logs the file's content at that time, and the last version wins."""
    started = start_session(held.uri)
    with lifecycle.open_run(name="train") as run:
        for step in range(3):
            Path("last.ckpt").write_text(f"step {step}")
            mlflow.log_artifact("last.ckpt", f"step{step}")
            mlflow.log_artifact("last.ckpt")
        Path("last.ckpt").write_text("half of ste")
        held.status = 200
    started.stop()

    found = {name: content(mlflow_server, run.info.run_id, name) for name in arrived(mlflow_server, run.info.run_id)}
    assert found == {
        "last.ckpt": b"step 2",
        "step0/last.ckpt": b"step 0",
        "step1/last.ckpt": b"step 1",
        "step2/last.ckpt": b"step 2",
    }


def test_waiting_files_can_be_read_like_uploaded_ones(held, start_session, tmp_path):
    """Listings and downloads contain waiting and uploaded files, by the run, by its URI, and in subfolders."""
    start_session(held.uri)
    with lifecycle.open_run(name="train") as run:
        held.status = 200
        mlflow.log_text("old", "data/there.txt")
        mlflow.log_text("old", "data/both.txt")
        assert write_behind.flush(60)
        held.status = 503
        mlflow.log_text("new", "data/both.txt")
        mlflow.log_text("new", "data/deep/here.txt")
        root = f"runs:/{run.info.run_id}"
        folder = Path(mlflow.artifacts.download_artifacts(f"{root}/data", dst_path=str(tmp_path)))
        texts = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.txt")}

        assert texts == {"there.txt": "old", "both.txt": "new", "deep/here.txt": "new"}
        assert mlflow.artifacts.load_text(f"{root}/data/deep/here.txt") == "new"
        assert [one.path for one in mlflow.artifacts.list_artifacts(f"{root}/data")] == [
            "data/both.txt",
            "data/deep",
            "data/there.txt",
        ]
        assert mlflow.artifacts.list_artifacts(f"{root}/data/both.txt") == []


@pytest.mark.parametrize("path", ["../outside", "/absolute"])
def test_a_path_that_mlflow_does_not_accept_is_an_error_at_the_call(held, start_session, path):
    """The path is rejected at the call, as by plain MLflow."""
    start_session(held.uri)
    Path("file.txt").write_text("text")
    with lifecycle.open_run(name="train"), pytest.raises(MlflowException, match="Invalid artifact path"):
        mlflow.log_artifact("file.txt", path)


def test_a_file_that_does_not_exist_is_an_error_at_the_call(held, start_session):
    """A missing file raises at the call, as in plain MLflow."""
    start_session(held.uri)
    with lifecycle.open_run(name="train"), pytest.raises(FileNotFoundError, match="missing"):
        mlflow.log_artifact("missing.txt")


def test_a_name_that_is_not_text_is_an_error_at_the_call(proxy, mlflow_server, start_session):
    """As in plain MLflow, such a name cannot be sent, and no file of the folder is logged."""
    started = start_session(proxy.uri)
    Path("folder").mkdir()
    Path("folder", os.fsdecode(b"\xff.txt")).write_text("text")
    Path("folder", "good.txt").write_text("text")
    with lifecycle.open_run(name="train") as run:
        with pytest.raises(UnicodeEncodeError):
            mlflow.log_artifacts("folder")
        mlflow.log_artifact("folder/good.txt")
    started.stop()

    assert arrived(mlflow_server, run.info.run_id) == ["good.txt"]


def test_names_arrive_as_they_are(proxy, mlflow_server, start_session, tmp_path, caplog):
    """MLflow stores `50% off?.txt` and `a#b.txt` under other names, and its server can store only the first."""
    started = start_session(proxy.uri)
    Path("50% off?.txt").write_text("question")
    Path("a#b.txt").write_text("hash")
    with lifecycle.open_run(name="train") as run:
        mlflow.log_text("whole", "a")
        mlflow.log_artifact("50% off?.txt", "100% sure")
        mlflow.log_artifact("a#b.txt")
    started.stop()

    assert arrived(mlflow_server, run.info.run_id) == ["100% sure/50% off?.txt", "a"]
    assert content(mlflow_server, run.info.run_id, "a") == b"whole"
    assert "cannot store 'a#b.txt'" in caplog.text
    (aside,) = (tmp_path / "state" / "refused").iterdir()
    assert (aside / "a#b.txt").read_text() == "hash"


def test_larger_files_are_uploaded_from_outside(start_python, proxy, mlflow_server, wait_until):
    """Files are uploaded even while the job is stopped; a killed uploader is restarted."""
    proxy.status, proxy.concerning = 503, "large.bin"
    job = start_python("-c", JOB.replace("BODY", LOG_LARGE), stdin=subprocess.PIPE, MLFLOW_TRACKING_URI=proxy.uri)
    run_id = job.wait_for("run ").split()[1]
    job.wait_for("logged")
    (journal,) = Path(os.environ["AUTOGEN_TEAM_STATE_DIR"], "journals").iterdir()
    wait_until(lambda: proxy.refused > 0)
    holder = holder_of(spool.folder_of(journal) / "lock")
    os.kill(holder, signal.SIGKILL)
    job.send(signal.SIGSTOP)
    proxy.status = 200
    try:
        wait_until(lambda: not [one for one in spool.waiting(journal) if not one.is_own], timeout=120)
    finally:
        job.send(signal.SIGCONT)
    status, _, err = job.finish("\n")

    assert status == 0, err
    for n in range(3):
        assert content(mlflow_server, run_id, f"part{n}/large.bin") == bytes([n]) * 2_100_000
        assert content(mlflow_server, run_id, f"part{n}/small.txt") == f"small {n}".encode()
    assert holder != job.popen.pid


def test_the_uploader_uses_a_token_that_the_job_has_renewed(start_python, proxy, mlflow_server, wait_until):
    """The server rejects the old token; after the job has changed its environment, the file is uploaded."""
    proxy.token = "new"
    body = """
    with open("large.bin", "wb") as file:
        file.write(b"1" * 2_100_000)
    mlflow.log_artifact("large.bin")
    sys.stdin.readline()
    os.environ["MLFLOW_TRACKING_TOKEN"] = "new"
    print("renewed", flush=True)
    sys.stdin.readline()
"""
    environment = {"MLFLOW_TRACKING_URI": proxy.uri, "MLFLOW_TRACKING_TOKEN": "old"}
    job = start_python("-c", JOB.replace("BODY", body), stdin=subprocess.PIPE, **environment)
    run_id = job.wait_for("run ").split()[1]
    wait_until(lambda: proxy.refused > 0)
    job.popen.stdin.write("\n")
    job.popen.stdin.flush()
    job.wait_for("renewed")
    wait_until(lambda: "large.bin" in arrived(mlflow_server, run_id), timeout=90)
    status, _, err = job.finish("\n")

    assert status == 0, err


def holder_of(path: Path) -> int:
    """Return the process that holds the lock of a file."""
    number = path.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "POSIX" and words[5].endswith(f":{number}"):
            return int(words[4])
    raise AssertionError("no process holds the lock")


def test_every_byte_arrives_after_a_kill(start_python, held, mlflow_server, wait_until):
    """The files of a killed job are uploaded after its run is closed."""
    job = start_python("-c", JOB.replace("BODY", LOG_LARGE), stdin=subprocess.PIPE, MLFLOW_TRACKING_URI=held.uri)
    run_id = job.wait_for("run ").split()[1]
    job.wait_for("logged")
    job.send(signal.SIGKILL)
    job.finish()
    client = mlflow.MlflowClient(mlflow_server)
    wait_until(lambda: client.get_run(run_id).info.status == "KILLED", timeout=120)
    before = arrived(mlflow_server, run_id)
    held.status = 200
    wait_until(lambda: not index.find(Path(os.environ["AUTOGEN_TEAM_STATE_DIR"])), timeout=120)

    assert before == []
    for n in range(3):
        assert content(mlflow_server, run_id, f"part{n}/large.bin") == bytes([n]) * 2_100_000
        assert content(mlflow_server, run_id, f"part{n}/small.txt") == f"small {n}".encode()


def test_files_do_not_hold_up_metrics(held, mlflow_server, start_session, wait_until):
    """Metrics arrive and runs end while files wait."""
    start_session(held.uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_text("text", "waits.txt")
        mlflow.log_metric("loss", 1.0)
    client = mlflow.MlflowClient(mlflow_server)
    wait_until(lambda: client.get_run(run.info.run_id).info.status == "FINISHED")

    assert client.get_run(run.info.run_id).data.metrics == {"loss": 1.0}
    assert arrived_plainly(mlflow_server, run) == []
    held.status = 200


def test_past_the_limit_files_wait_for_space(held, mlflow_server, start_session, caplog, wait_until):
    """The call waits until earlier files are uploaded, and logs one warning; metrics do not wait."""
    started = start_session(held.uri, spool_limit="3000 B")
    Path("file.bin").write_bytes(b"1" * 2000)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_artifact("file.bin", "first")
        waiting = threading.Thread(
            target=mlflow.MlflowClient().log_artifact, args=(run.info.run_id, "file.bin", "second")
        )
        waiting.start()
        wait_until(lambda: "spool_limit" in caplog.text)
        mlflow.log_metric("loss", 1.0)
        wait_until(lambda: mlflow.MlflowClient(mlflow_server).get_run(run.info.run_id).data.metrics == {"loss": 1.0})
        assert waiting.is_alive()
        held.status = 200
        waiting.join(60)
        assert not waiting.is_alive()
    started.stop()

    assert arrived(mlflow_server, run.info.run_id) == ["first/file.bin", "second/file.bin"]
    assert caplog.text.count("spool_limit") == 1
    assert "2 kB of artifacts wait" in caplog.text


def test_a_file_above_the_limit_waits_for_the_others_only(proxy, mlflow_server, start_session):
    """A file larger than the limit is accepted if no other file waits."""
    started = start_session(proxy.uri, spool_limit=10)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_text("more than ten bytes", "a.txt")
        mlflow.log_text("more than ten bytes", "b.txt")
    started.stop()

    assert arrived(mlflow_server, run.info.run_id) == ["a.txt", "b.txt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_on_a_full_disk_a_file_is_uploaded_at_once(proxy, mlflow_server, start_session, tmp_path):
    """The file is uploaded as in plain MLflow; nothing is lost, and no partial copy is left."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False).returncode
    ):
        pytest.skip("mounting is not permitted")
    try:
        started = start_session(proxy.uri, state_dir=str(folder / "state"))
        Path("large.bin").write_bytes(b"1" * 6 * 2**20)
        with lifecycle.open_run(name="train") as run:
            mlflow.log_artifact("large.bin")
            assert arrived_plainly(mlflow_server, run) == ["large.bin"]
            mlflow.log_text("fits", "small.txt")
        started.stop()
    finally:
        subprocess.run([umount, "-l", str(folder)], check=True)

    assert arrived(mlflow_server, run.info.run_id) == ["large.bin", "small.txt"]


def test_a_model_is_ready_once_its_files_have_arrived(held, mlflow_server, start_session, tmp_path):
    """Until then the model is ready only for its own process, and registering a version waits."""
    started = start_session(held.uri)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}")
    client, plain = mlflow.MlflowClient(), mlflow.MlflowClient(mlflow_server)
    with lifecycle.open_run(name="train") as run:
        model = client.create_logged_model(run.info.experiment_id, "model", source_run_id=run.info.run_id)
        client.log_model_artifacts(model.model_id, str(tmp_path / "model"))
        returned = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        before = [one.get_logged_model(model.model_id).status for one in (client, mlflow.MlflowClient())]
        stored = store_of(mlflow_server).get_logged_model(model.model_id).status
        client.create_registered_model("registered")
        arguments = {"name": "registered", "source": model.artifact_location, "model_id": model.model_id}
        registering = threading.Thread(target=client.create_model_version, kwargs=arguments)
        registering.start()
        registering.join(1.0)
        assert registering.is_alive()
        assert plain.search_model_versions("name = 'registered'") == []
        held.status = 200
        registering.join(60)
    started.stop()

    assert returned.status == LoggedModelStatus.READY
    assert before == [LoggedModelStatus.READY] * 2
    assert stored == LoggedModelStatus.PENDING
    assert plain.get_logged_model(model.model_id).status == LoggedModelStatus.READY
    assert len(plain.search_model_versions("name = 'registered'")) == 1


def store_of(uri: str):
    """Return MLflow's own store."""
    from autogen_team._ship import mlflow_backend

    return mlflow_backend.plain_store(uri)


def test_a_model_whose_files_are_refused_is_not_ready(held, mlflow_server, start_session, tmp_path):
    """The model's status is FAILED."""
    started = start_session(held.uri)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}")
    client = mlflow.MlflowClient()
    with lifecycle.open_run(name="train") as run:
        model = client.create_logged_model(run.info.experiment_id, "model")
        client.log_model_artifacts(model.model_id, str(tmp_path / "model"))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        held.status = 413
    started.stop()

    assert mlflow.MlflowClient(mlflow_server).get_logged_model(model.model_id).status == LoggedModelStatus.FAILED
    assert mlflow.MlflowClient(mlflow_server).get_run(run.info.run_id).info.status == "FINISHED"


def test_artifacts_in_a_folder_of_this_machine_are_left_alone(start_session, store_uri):
    """For a local artifact folder, MLflow's copy is the upload."""
    start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_text("text", "a.txt")
        repository = get_artifact_repository(run.info.artifact_uri)

        assert type(repository).__name__ == "LocalArtifactRepository"
        assert not list(Path(os.environ["AUTOGEN_TEAM_STATE_DIR"], "journals").glob("*/files/*"))


def test_an_address_with_a_login_is_left_alone(start_session, store_uri):
    """A login in the artifact URI would be written to disk."""
    start_session(store_uri)

    assert type(get_artifact_repository("ftp://ada:secret@127.0.0.1/files")) is not artifacts.Repository


def test_repositories_are_restored(start_session, mlflow_server):
    """`stop` registers MLflow's repositories again; a repository of ours that a job still holds delegates to them."""
    before = dict(get_registered_artifact_repositories())
    started = start_session(mlflow_server)
    with lifecycle.open_run(name="train") as run:
        held = get_artifact_repository(run.info.artifact_uri)
        assert type(held) is artifacts.Repository
        assert isinstance(held, before["mlflow-artifacts"])
    get_registered_artifact_repositories()["other"] = held
    started.stop()

    assert dict(get_registered_artifact_repositories()) == {**before, "other": held}
    del get_registered_artifact_repositories()["other"]
    Path("file.txt").write_text("text")
    held.log_artifact("file.txt")
    held.log_artifacts(".", "folder")
    assert "file.txt" in [one.path for one in held.list_artifacts()]
    assert Path(held.download_artifacts("file.txt")).read_text() == "text"


def test_deleting_artifacts_deletes_waiting_files(proxy, mlflow_server, start_session):
    """A waiting file is uploaded before the deletion, so that it does not reappear."""
    started = start_session(proxy.uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_text("text", "folder/gone.txt")
        mlflow.log_text("text", "folder.txt")
        repository = get_artifact_repository(run.info.artifact_uri)
        repository.delete_artifacts("folder")
    started.stop()

    assert arrived(mlflow_server, run.info.run_id) == ["folder.txt"]


def test_links_to_folders_are_not_followed(held, mlflow_server, start_session, tmp_path):
    """As in MLflow, a circle of links does not lead to an endless walk."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "circle").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "file.txt").write_text("text")
    (tmp_path / "folder" / "link.txt").symlink_to(tmp_path / "folder" / "file.txt")
    started = start_session(held.uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_artifacts(str(tmp_path / "folder"))
        held.status = 200
    started.stop()

    assert arrived(mlflow_server, run.info.run_id) == ["file.txt", "link.txt"]


def test_a_forked_child_logs_its_own_files(start_python, mlflow_server):
    """Parent and child number their files independently, and each delivers its own."""
    body = """
    mlflow.log_text("parent", "parent.txt")
    pid = os.fork()
    if pid == 0:
        mlflow.MlflowClient().log_text(run.info.run_id, "child", "child.txt")
        from autogen_team._capture import write_behind
        os._exit(0 if write_behind.flush(60) else 9)
    assert os.waitpid(pid, 0)[1] == 0
"""
    job = start_python("-c", JOB.replace("BODY", body), MLFLOW_TRACKING_URI=mlflow_server)
    run_id = job.wait_for("run ").split()[1]
    status, _, err = job.finish()

    assert status == 0, err
    assert {"parent.txt", "child.txt"} <= set(arrived(mlflow_server, run_id))


@pytest.fixture
def bucket(monkeypatch):
    """Return the URI of a bucket of a real S3 API on this machine."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "bench")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "bench")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3 = ThreadedMotoServer("127.0.0.1", 0)
    s3.start()
    host, port = s3.get_host_and_port()
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="files")
    yield "s3://files/mlflow"
    s3.stop()


@pytest.mark.parametrize("size", [1000, 2_100_000])
def test_files_go_straight_to_s3(start_python, store_uri, bucket, wait_until, size):
    """If the run's artifacts are in S3, the job and the agent's uploader write there directly; a kill loses nothing."""
    body = f"""
    with open("file.bin", "wb") as file:
        file.write(b"s" * {size})
    mlflow.log_artifact("file.bin", "folder")
    mlflow.log_artifacts("some", "some")
    print([one.path for one in mlflow.MlflowClient().list_artifacts(run.info.run_id, "folder")], flush=True)
    os.kill(os.getpid(), 9)
"""
    Path("some").mkdir()
    Path("some/a.txt").write_text("a")
    experiment = mlflow.MlflowClient(store_uri).create_experiment("in a bucket", bucket)
    job = start_python("-c", JOB.replace("BODY", body), MLFLOW_EXPERIMENT_ID=experiment)
    run_id = job.wait_for("run ").split()[1]
    listed = job.wait_for("file.bin")
    job.finish()
    folder = Path(os.environ["AUTOGEN_TEAM_STATE_DIR"])
    wait_until(lambda: not index.find(folder), timeout=120)

    assert listed.strip() == "['folder/file.bin']"
    assert {"folder/file.bin", "some/a.txt"} <= set(arrived(store_uri, run_id))
    assert content(store_uri, run_id, "folder/file.bin") == b"s" * size


LOG_MANY = """
    for n in range(10**9):
        with open("file.bin", "wb") as file:
            file.write(n.to_bytes(4, "big") * (300_000 if n % 3 == 0 else 100))
        mlflow.log_artifact("file.bin", f"part{n}")
        print("acknowledged", n, flush=True)
"""


@pytest.mark.parametrize("seed", range(KILLS))
def test_kills_at_any_moment_lose_no_file(start_python, server, wait_until, run_python, seed):
    """The job, the uploader or both are killed while the server is up, down or silent."""
    dice = random.Random(seed)
    job = start_python("-c", JOB.replace("BODY", LOG_MANY), MLFLOW_TRACKING_URI=server.uri)
    run_id = job.wait_for("run ").split()[1]
    state = ["there", "away", "silent"][seed % 3]
    last = _acknowledged(job, dice)
    if state == "away":
        server.kill()
    elif state == "silent":
        server.send(signal.SIGSTOP)
    last = _acknowledged(job, dice)
    victims = dice.choice(["uploader", "job", "both"])
    folder = Path(os.environ["AUTOGEN_TEAM_STATE_DIR"])
    if victims != "job":
        for journal in (folder / "journals").iterdir():
            with suppress(AssertionError, FileNotFoundError, ProcessLookupError):  # no uploader is running now
                os.kill(holder_of(spool.folder_of(journal) / "lock"), signal.SIGKILL)
    if victims == "uploader":
        last = _acknowledged(job, dice)
    job.send(signal.SIGKILL)
    _, out, _ = job.finish()
    last = max([last, *(int(line.split()[1]) for line in out.splitlines() if line.startswith("acknowledged "))])
    if state == "away":
        server.start()
    elif state == "silent":
        server.send(signal.SIGCONT)
    wait_until(lambda: run_python("-m", "autogen_team", "recover") and not index.find(folder), timeout=240)

    found = Path(mlflow.MlflowClient(server.uri).download_artifacts(run_id, ""))
    for n in range(last + 1):
        expected = n.to_bytes(4, "big") * (300_000 if n % 3 == 0 else 100)
        assert (found / f"part{n}" / "file.bin").read_bytes() == expected, n


def _acknowledged(job, dice: random.Random) -> int:
    """Wait for some files, and return the number of the last one."""
    for _ in range(dice.randrange(1, 12)):
        last = job.wait_for("acknowledged")
    return int(last.split()[1])


def test_a_file_that_is_uploaded_during_a_listing_is_listed(monkeypatch, tmp_path):
    """It is not in the store when this is asked first, and no longer waits when the files that wait are looked at."""
    answers = [[], [FileInfo("folder/file.bin", False, 3)]]
    repository = artifacts.Repository(Store(answers), "file:///nowhere", lambda: None)
    monkeypatch.setattr(artifacts.Repository, "_waiting", lambda *_: {"folder/file.bin": tmp_path / "file.bin"})

    assert [one.path for one in repository.list_artifacts("folder")] == ["folder/file.bin"]


class Store:
    """An artifact repository that gives one answer after the other."""

    def __init__(self, answers) -> None:
        self._answers = iter(answers)

    def list_artifacts(self, _path):
        """Return the next answer."""
        return next(self._answers)
