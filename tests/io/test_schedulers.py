"""Identity of a job, from the variables of schedulers."""

from __future__ import annotations

import pytest

from autogen_team._process import schedulers

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_NAME": "train"}


@pytest.mark.parametrize(
    ("variables", "job", "starts"),
    [
        ({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "3"}, "slurm-12", 3),
        ({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2"}, "slurm-10-2", 0),
        ({"SKYPILOT_TASK_ID": "sky-managed-1_train_4-0"}, "skypilot-sky-managed-1_train_4-0", 0),
        ({"TORCHELASTIC_RUN_ID": "digits"}, "torchrun-digits", 0),
        ({"RAY_JOB_ID": "02000000"}, "ray-02000000", 0),
        ({"AWS_BATCH_JOB_ID": "a1:7", "AWS_BATCH_JOB_ATTEMPT": "2"}, "aws-batch-a1:7", 2),
        ({"TRAINING_JOB_NAME": "t"}, "sagemaker-t", 0),
        ({"CLOUD_ML_JOB_ID": "81"}, "vertex-81", 0),
        ({"PBS_JOBID": "9[3].head"}, "pbs-9[3].head", 0),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "0"}, "lsf-5", 0),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "4"}, "lsf-5-4", 0),
        (POD, "kubernetes-train", 0),
        ({**POD, "JOB_UID": "ab-1", "JOB_COMPLETION_INDEX": "0"}, "kubernetes-train-ab-1-0", 0),
        ({**POD, "SLURM_JOB_ID": "1"}, "slurm-1", 0),
    ],
)
def test_the_id_of_a_job_is_that_of_its_scheduler(variables, job, starts):
    """The id includes the task of an array job; the outermost scheduler wins."""
    found = schedulers.find(variables)

    assert (found.job, found.starts) == (job, starts)


@pytest.mark.parametrize(
    "variables", [{}, {"TORCHELASTIC_RUN_ID": "none"}, {"JOB_NAME": "jenkins"}, {"SLURM_JOB_ID": ""}]
)
def test_other_variables_identify_no_job(variables):
    """A build server's variable, or torchrun's default id, does not identify a job."""
    assert schedulers.find(variables) is None


def test_a_signal_is_a_preemption_only_under_a_scheduler(monkeypatch):
    """Elsewhere a user may send SIGTERM, and under torchrun another rank may have failed."""
    assert not schedulers.has_preempted("SIGTERM")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert [name for name in ("SIGTERM", "SIGUSR2", "SIGINT", "SIGKILL", None) if schedulers.has_preempted(name)] == [
        "SIGTERM",
        "SIGUSR2",
    ]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "digits")
    assert not schedulers.has_preempted("SIGTERM")
