"""Facts about where a job ran: the interpreter, the machine, its GPUs, the container and the ids of the scheduler."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_SCHEDULER = re.compile(
    r"SLURM_(?:ARRAY_(?:JOB|TASK)_ID|CLUSTER_NAME|JOB_(?:ID|NAME|NODELIST|PARTITION|ACCOUNT)|NNODES|NTASKS|NODEID|PROCID"
    r"|RESTART_COUNT|GPUS_ON_NODE)|PBS_(?:JOBID|JOBNAME|QUEUE|ARRAY_INDEX)|LSB_JOB(?:ID|INDEX|NAME)|SGE_TASK_ID|FLUX_JOB_ID"
    r"|SKYPILOT_(?:TASK_ID|NODE_RANK|NUM_NODES|NUM_GPUS_PER_NODE|CLUSTER_INFO)|AWS_BATCH_JOB_(?:ID|ATTEMPT|ARRAY_INDEX)"
    r"|JOB_COMPLETION_INDEX|RAY_JOB_ID|TORCHELASTIC_(?:RUN_ID|RESTART_COUNT)|(?:LOCAL_|GROUP_)?RANK|(?:LOCAL_)?WORLD_SIZE"
    r"|GITHUB_(?:REPOSITORY|RUN_ID|RUN_ATTEMPT|SHA|WORKFLOW)|CI_(?:JOB_ID|PIPELINE_ID|COMMIT_SHA)|BUILD_(?:ID|TAG)"
    r"|CUDA_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES|ROCR_VISIBLE_DEVICES|OMP_NUM_THREADS"
)
"""Variables with the ids of a job and its allocation by a scheduler."""
_IMAGE = (
    "APPTAINER_CONTAINER",
    "SINGULARITY_CONTAINER",
    "SLURM_SPANK__SLURM_SPANK_OPTION_pyxis_container_image",
    "CONTAINER_IMAGE",
)
_PATIENCE = 5.0
"""Maximum seconds for nvidia-smi, which is slow if the driver is not loaded."""


def python(executable: str, version: str) -> dict[str, Any]:
    """Return the facts about the job's interpreter."""
    return {"version": version, "implementation": platform.python_implementation(), "executable": executable}


def machine() -> dict[str, Any]:
    """Return the facts about this machine."""
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu_model(),
    }
    with suppress(OSError, ValueError):
        found["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (limit := _memory_limit()) is not None:
        found["memory_limit_bytes"] = limit
    return found


def gpus() -> dict[str, Any]:
    """Return the NVIDIA GPUs and their driver; empty if there are none."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-gpu=index,name,memory.total,uuid,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=_PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return {"problem": f"nvidia-smi: {type(error).__name__}"}
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    found = [
        {"index": row[0], "name": row[1], "memory_mib": int(row[2]) if row[2].isdecimal() else None, "uuid": row[3]}
        for row in rows
        if len(row) == 5
    ]
    return {"driver": rows[0][-1], "devices": found} if found else {}


def scheduler(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the job's scheduler variables."""
    found = {name: value for name, value in sorted(environment.items()) if _SCHEDULER.fullmatch(name)}
    if "KUBERNETES_SERVICE_HOST" in environment:
        found["pod"] = socket.gethostname()
        with suppress(OSError):
            found["namespace"] = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip()
    if "JOB_ID" in environment and "SGE_TASK_ID" in environment:
        found["JOB_ID"] = environment["JOB_ID"]
    return found


def container(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the kind of container and, if known, its image; empty outside a container."""
    found = dict(_kinds(environment))
    image = next((environment[name] for name in _IMAGE if environment.get(name)), None)
    with suppress(OSError):
        written = re.search(r'^image="(.*)"$', Path("/run/.containerenv").read_text(), re.MULTILINE)
        image = image or (written[1] if written else None)
    if image:
        found["image"] = image
    return found


def _kinds(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if "APPTAINER_CONTAINER" in environment or "SINGULARITY_CONTAINER" in environment:
        yield "kind", "apptainer"
    elif Path("/run/.containerenv").exists():
        yield "kind", "podman"
    elif "KUBERNETES_SERVICE_HOST" in environment:
        yield "kind", "kubernetes"
    elif Path("/.dockerenv").exists():
        yield "kind", "docker"


def _cpu_model() -> str:
    with suppress(OSError, StopIteration), Path("/proc/cpuinfo").open() as lines:
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor()


def _memory_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limit = int(Path(path).read_text())
            return limit if limit < 2**60 else None
    return None
