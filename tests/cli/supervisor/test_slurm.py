"""A requeued job of a real Slurm on one machine: its starts share a run, and its signals mean preemption."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from autogen_team._process.run_events import ATTEMPT_TAG, JOB_TAG

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch"))),
    reason="Slurm is not installed (apt-get install slurmctld slurmd slurm-client), or this is not root",
)
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={d}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/linear
ReturnToService=2
KillWait=60
SchedulerParameters=sched_interval=1,batch_sched_delay=1
AuthInfo=cred_expire=2
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
TRAIN = """
import os, sys, time, mlflow
from autogen_team import GlobalContext
context = GlobalContext.current()
last = context.last_step("loss")
for step in range(3):
    mlflow.log_metric("loss", step, step=step + (0 if last is None else last + 1))
context.mlflow_service.flush()
open(f"attempt-{context.attempt}", "w").close()
while context.attempt < 2:
    time.sleep(0.1)
"""


@pytest.fixture
def slurm(tmp_path, free_port, wait_until, monkeypatch):
    """Return a function that runs a command of Slurm; its daemons end with the test."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    host = socket.gethostname().partition(".")[0]
    path = folder / "slurm.conf"
    path.write_text(CONFIGURATION.format(host=host, folder=folder, ctld=free_port(), d=free_port()))
    monkeypatch.setenv("SLURM_CONF", str(path))

    def command(*words: str) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    daemons = []
    try:
        for name, *words in (("slurmctld", "-D"), ("slurmd", "-D", "-N", host)):
            with (folder / f"{name}.log").open("w") as log:
                daemons.append(subprocess.Popen([shutil.which(name), *words, "-f", str(path)], stdout=log, stderr=log))
        wait_until(
            lambda: (
                "idle"
                in subprocess.run(["sinfo", "-h", "-o", "%T"], check=False, capture_output=True, text=True).stdout
            )
        )
        yield command
    finally:
        subprocess.run(["scancel", "-u", "root", "-s", "KILL"], check=False, capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


@pytest.mark.timeout(600)
def test_a_requeued_job_continues_its_run(slurm, script, the_run, store_uri, wait_until):
    """The job gets SIGTERM and ends as preempted; its next start finds the run by Slurm's job id."""
    script(TRAIN)
    script(f"#!/bin/bash\nexec {sys.executable} -m autogen_team run --job auto --no-system-metrics job.py\n", "job.sh")
    number = slurm("sbatch", "--parsable", "--requeue", "--open-mode=append", "--output=out.txt", "job.sh").strip()
    wait_until(Path("attempt-1").exists, timeout=200)
    slurm("scontrol", "requeue", number)
    wait_until(Path("attempt-2").exists, timeout=300)
    wait_until(lambda: the_run().info.status == "FINISHED", timeout=100)

    run = the_run()
    assert (run.data.tags[JOB_TAG], run.data.tags[ATTEMPT_TAG]) == (f"slurm-{number}", "2")
    assert run.data.tags[f"{ATTEMPT_TAG}.1"].startswith("KILLED, SIGTERM, preempted, on ")
    history = mlflow.MlflowClient(store_uri).get_metric_history(run.info.run_id, "loss")
    assert sorted(metric.step for metric in history) == [0, 1, 2, 3, 4, 5]
