"""Schedulers and launchers, and the variables by which each identifies a job that it may start several times.

An identity is the same for all starts of a job, and differs from that of any other job. The table is searched in order.
An entry that others may start comes after them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Environment = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A scheduler, and the variables that it sets."""

    name: str
    """Display name."""
    prefix: str
    """Prefix of its job identities."""
    variables: tuple[str, ...]
    """Variables that form the identity, joined by dashes; each must be set."""
    more: tuple[str, ...] = ()
    """Optional variables, which are part of the identity if they are set."""
    restarts: str = ""
    """Variable that counts the restarts by the scheduler; empty if there is none."""
    counts: Callable[[Environment], bool] = lambda _: True
    """Check that the variables come from this scheduler, if others use the same names."""


def _is_chosen(environment: Environment) -> bool:
    return environment.get("TORCHELASTIC_RUN_ID") != "none"  # the default id of a static rendezvous


def _is_pod(environment: Environment) -> bool:
    return "KUBERNETES_SERVICE_HOST" in environment  # Jenkins sets JOB_NAME too


def _is_array_of_lsf(environment: Environment) -> bool:
    return environment.get("LSB_JOBINDEX", "0") != "0"


SCHEDULERS = (
    Scheduler(
        "Slurm", "slurm", ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"), restarts="SLURM_RESTART_COUNT"
    ),  # each task of an array has its own job id, which changes at some requeues
    Scheduler("Slurm", "slurm", ("SLURM_JOB_ID",), restarts="SLURM_RESTART_COUNT"),
    Scheduler("SkyPilot", "skypilot", ("SKYPILOT_TASK_ID",)),
    Scheduler("torchrun", "torchrun", ("TORCHELASTIC_RUN_ID",), counts=_is_chosen),
    Scheduler("Ray", "ray", ("RAY_JOB_ID",)),
    Scheduler("AWS Batch", "aws-batch", ("AWS_BATCH_JOB_ID",), restarts="AWS_BATCH_JOB_ATTEMPT"),
    Scheduler("SageMaker", "sagemaker", ("TRAINING_JOB_NAME",)),
    Scheduler("Vertex AI", "vertex", ("CLOUD_ML_JOB_ID",)),
    Scheduler("PBS", "pbs", ("PBS_JOBID",)),
    Scheduler("LSF", "lsf", ("LSB_JOBID", "LSB_JOBINDEX"), counts=_is_array_of_lsf),
    Scheduler("LSF", "lsf", ("LSB_JOBID",)),
    Scheduler("Kubernetes", "kubernetes", ("JOB_NAME",), more=("JOB_UID", "JOB_COMPLETION_INDEX"), counts=_is_pod),
)


@dataclass(frozen=True, slots=True)
class Found:
    """The scheduler that started this process."""

    scheduler: str
    job: str
    """The identity of the job."""
    starts: int
    """Number of restarts, as counted by the scheduler; 0 if it does not count them."""


def find(environment: Environment = os.environ) -> Found | None:
    """Return the scheduler that started this process, with the identity of the job; None without a scheduler.

    >>> find({"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": "2"})
    Found(scheduler='Slurm', job='slurm-4711', starts=2)
    >>> find({"TORCHELASTIC_RUN_ID": "none", "JOB_NAME": "nightly"})
    """
    for one in SCHEDULERS:
        if all(environment.get(name) for name in one.variables) and one.counts(environment):
            values = [environment[name] for name in (*one.variables, *one.more) if environment.get(name)]
            count = environment.get(one.restarts, "")
            return Found(one.name, "-".join([one.prefix, *values]), int(count) if count.isdecimal() else 0)
    return None


ANNOUNCED = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Signals by which schedulers announce the end of a job, also before a time limit."""


def has_preempted(signal_name: str | None) -> bool:
    """Return whether a scheduler sent the signal that ended this job.

    A `kill` by the user looks the same, so any such signal counts under a scheduler. Under torchrun none counts,
    because torchrun ends all ranks when one of them fails.
    """
    return signal_name in ANNOUNCED and find() is not None and "TORCHELASTIC_RUN_ID" not in os.environ


def looked_for() -> str:
    """Return the variables of all schedulers, for an error message."""
    variables = dict.fromkeys(name for one in SCHEDULERS for name in one.variables)
    return ", ".join(variables)
