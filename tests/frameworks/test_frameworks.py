"""Output and exit status are the same as without us, and the store has the correct run."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.request

import pytest

DIGITS = """
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
X, y = load_digits(return_X_y=True)
Xt, Xv, yt, yv = train_test_split(X[:600], y[:600], random_state=0)
"""
SCRIPTS = {
    "scikit-learn with n_jobs": DIGITS
    + """
from sklearn.linear_model import LogisticRegression
search = GridSearchCV(LogisticRegression(max_iter=30), {"C": [0.1, 1.0]}, n_jobs=2, cv=2).fit(Xt, yt)
print(search.best_params_, round(search.score(Xv, yv), 3))
""",
    "XGBoost": DIGITS
    + """
import xgboost
model = xgboost.XGBClassifier(n_estimators=5, n_jobs=2).fit(Xt, yt, eval_set=[(Xv, yv)], verbose=False)
print(round(model.score(Xv, yv), 3))
""",
    "LightGBM": DIGITS
    + """
import lightgbm
model = lightgbm.LGBMClassifier(n_estimators=5, n_jobs=2, verbose=-1).fit(Xt, yt, eval_set=[(Xv, yv)])
print(round(model.score(Xv, yv), 3))
""",
    "Lightning": """
import logging, torch, lightning
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def training_step(self, batch, index):
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("loss", loss, on_epoch=True)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)
lightning.seed_everything(0, verbose=False)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 4)), batch_size=8)
trainer = lightning.Trainer(
    max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    accelerator="cpu",
)
trainer.fit(Model(), data)
print("epochs", trainer.current_epoch)
""",
    "Hugging Face Trainer": """
import torch, transformers
transformers.set_seed(0)
transformers.logging.set_verbosity_error()
config = transformers.BertConfig(
    vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
)
model = transformers.BertForSequenceClassification(config)
data = [{"input_ids": [n % 32, 1, 2], "attention_mask": [1, 1, 1], "labels": n % 2} for n in range(32)]
arguments = transformers.TrainingArguments(
    "out", num_train_epochs=2, logging_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True,
    per_device_train_batch_size=8, log_level="error",
)
trainer = transformers.Trainer(model, arguments, train_dataset=data)
trainer.remove_callback(transformers.PrinterCallback)
result = trainer.train()
print("steps", result.global_step)
""",
    "Optuna with n_jobs": """
import optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(sampler=optuna.samplers.GridSampler({"x": [-1, 0, 1, 2]}))
study.optimize(lambda trial: trial.suggest_int("x", -5, 5) ** 2, n_trials=4, n_jobs=2)
print(study.best_value, len(study.trials))
""",
    "Ray": """
import logging, ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
@ray.remote
def square(x):
    return x * x
print(sum(ray.get([square.remote(x) for x in range(5)])))
ray.shutdown()
""",
    "Dask": """
from dask.distributed import Client
def square(x):
    return x * x
if __name__ == "__main__":
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as client:
        print(sum(client.gather(client.map(square, range(5)))))
""",
}
LOADER = """
import torch
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 16
    def __getitem__(self, index):
        return torch.tensor(float(index))
if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Data(), batch_size=4, num_workers=2, multiprocessing_context="METHOD")
    print(sum(batch.sum().item() for batch in loader))
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script(jobs, compare, name):
    """The framework has its own workers, threads or callbacks."""
    (jobs.folder / "job.py").write_text(SCRIPTS[name])
    done, runs = compare("python", "job.py", under=("job.py",))

    assert done.out.strip()
    assert runs, "there is no run"
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert next(run for run in runs if "mlflow.parentRunId" not in run.data.tags).info.run_name == "job.py"


@pytest.mark.parametrize(
    "name", ["XGBoost", "LightGBM", "Lightning", "Hugging Face Trainer", "scikit-learn with n_jobs"]
)
def test_a_framework_is_autologged_in_the_run(jobs, name):
    """Autologging is enabled for a script that does not use MLflow."""
    (jobs.folder / "job.py").write_text(SCRIPTS[name])
    done = jobs.run("autogen-team", "run", "job.py")

    assert done.status == 0, done.err
    (run,) = [run for run in jobs.runs() if "mlflow.parentRunId" not in run.data.tags]
    assert run.data.params
    assert [key for key in run.data.metrics if not key.startswith("system/")]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_workers_of_a_data_loader(jobs, compare, method):
    """PyTorch's workers are forked or spawned."""
    (jobs.folder / "job.py").write_text(LOADER.replace("METHOD", method))
    done, runs = compare("python", "job.py", under=("job.py",))

    assert done.out == "120.0\n"
    assert [run.info.status for run in runs] == ["FINISHED"]


@pytest.mark.parametrize("name", ["scikit-learn with n_jobs", "Lightning"])
def test_a_script_that_fails(jobs, compare, name):
    """The run is FAILED with the exception, and the exit status is the script's."""
    (jobs.folder / "job.py").write_text(SCRIPTS[name] + "\nraise ValueError('the end of it')\n")
    done, runs = compare("python", "job.py", under=("job.py",), status=1)

    assert "ValueError: the end of it" in done.err
    (run,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert run.info.status == "FAILED"
    assert "ValueError: the end of it" in run.data.tags["autogen_team.exception"]


RANKS = """
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
if dist.get_rank() == 0:
    print("sum", total.item(), flush=True)
dist.destroy_process_group()
"""


def test_two_ranks_of_torchrun(jobs, compare):
    """PyTorch's launcher starts the ranks."""
    (jobs.folder / "job.py").write_text(RANKS)
    done, runs = compare("torchrun", "--standalone", "--nproc-per-node", "2", "job.py")

    assert done.out == "sum 3.0\n"
    assert [run.info.status for run in runs] == ["FINISHED"]


def test_the_launcher_of_accelerate(jobs, compare):
    """On a CPU, the launcher starts one process."""
    (jobs.folder / "job.py").write_text(
        "import accelerate, torch\n"
        "found = accelerate.Accelerator(cpu=True)\n"
        "print(found.num_processes, found.gather(torch.ones(1)).tolist())\n"
    )
    options = (
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    )
    done, runs = compare("accelerate", "launch", *options, "job.py")

    assert done.out == "1 [1.0]\n"
    assert [run.info.status for run in runs] == ["FINISHED"]


def test_pytest(jobs):
    """Pytest runs as a module: its exit status determines the run's, and its report is the same except for times."""
    (jobs.folder / "test_it.py").write_text("def test_right():\n    pass\ndef test_wrong():\n    assert 1 == 2\n")
    words = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_it.py")
    plain = jobs.run("python", "-m", "pytest", *words)
    ours = jobs.run("autogen-team", "run", "-m", "pytest", *words)

    assert (plain.status, ours.status) == (1, 1)
    assert _without_seconds(ours.out) == _without_seconds(plain.out)
    (run,) = jobs.runs()
    assert run.info.status == "FAILED"
    assert "assert 1 == 2" in run.data.tags["autogen_team.exception"]


def _without_seconds(text: str) -> str:
    return "\n".join(line.partition(" in ")[0] for line in text.splitlines())


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("server", ["gunicorn", "uvicorn"])
def test_a_server(jobs, serve, server):
    """The server answers; SIGTERM ends it and its workers with its own exit status, and the run ends likewise."""
    (jobs.folder / "app.py").write_text(
        "def wsgi(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [b'hello']\n"
        "async def asgi(scope, receive, send):\n"
        "    if scope['type'] == 'http':\n"
        "        await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "        await send({'type': 'http.response.body', 'body': b'hello'})\n"
    )
    ended = []
    for before in ((), ("autogen-team", "run", "--")):
        port = free_port()
        words = {
            "gunicorn": ("gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}", "app:wsgi"),
            "uvicorn": ("uvicorn", "--port", str(port), "--log-level", "error", "--lifespan", "off", "app:asgi"),
        }[server]
        process = serve(*before, *words)
        assert _answer(port) == b"hello"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        ended.append(process.returncode)
    (run,) = jobs.runs()

    assert ended[1] in (ended[0], 128 - ended[0])  # a shell reports the signal that killed it in this way
    assert run.info.status in ("FINISHED", "KILLED")


def _answer(port: int) -> bytes:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as found:
                return bytes(found.read())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


NOTEBOOK = {
    "cells": [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": "a",
            "metadata": {},
            "outputs": [],
            "source": "print(6 * 7)",
        }
    ],
    "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


@pytest.mark.parametrize(
    "words",
    [
        ("python", "-m", "nbconvert", "--to", "notebook", "--execute", "--output", "out", "--log-level", "ERROR",
         "job.ipynb"),
        ("python", "-m", "papermill", "--no-progress-bar", "--no-log-output", "--log-level", "ERROR", "-k", "python3",
         "job.ipynb", "out.ipynb"),
    ],
    ids=["nbconvert", "papermill"],
)  # fmt: skip
def test_a_notebook(jobs, compare, words):
    """A notebook is executed from a shell."""
    (jobs.folder / "job.ipynb").write_text(json.dumps(NOTEBOOK))
    _, runs = compare(*words, under=words[1:])
    (cell,) = json.loads((jobs.folder / "out.ipynb").read_text())["cells"]

    assert cell["outputs"][0]["text"] in ("42\n", ["42\n"])
    assert [run.info.status for run in runs] == ["FINISHED"]


def test_hydra_with_several_runs(jobs, compare):
    """Several runs of one process each print their own configuration, in their own folders."""
    (jobs.folder / "conf").mkdir()
    (jobs.folder / "conf" / "config.yaml").write_text("x: 0\n")
    (jobs.folder / "job.py").write_text(
        "import hydra\n"
        "@hydra.main(version_base=None, config_path='conf', config_name='config')\n"
        "def main(config):\n"
        "    print('x is', config.x)\n"
        "main()\n"
    )
    quiet = ("hydra/hydra_logging=disabled", "hydra/job_logging=disabled", "hydra.sweep.dir=sweep")
    done, runs = compare(
        "python", "job.py", "--multirun", "x=1,2", *quiet, under=("job.py", "--multirun", "x=1,2", *quiet)
    )

    assert done.out == "x is 1\nx is 2\n"
    assert [run.info.status for run in runs] == ["FINISHED"]


def test_an_mlflow_project(jobs, compare):
    """`mlflow run` opens a run and passes it to its entry point."""
    (jobs.folder / "MLproject").write_text("name: project\nentry_points:\n  main:\n    command: python job.py\n")
    (jobs.folder / "job.py").write_text("import mlflow\nmlflow.log_metric('loss', 1.0)\nprint('done')\n")
    words = ("mlflow", "run", ".", "--env-manager", "local", "--experiment-name", "projects")
    done, runs = compare(*words)

    assert done.out == "done\n"
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {"loss": 1.0} in [run.data.metrics for run in runs]
