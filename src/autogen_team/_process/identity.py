"""Identity of this process: its name, its rank under a launcher, and the job that it works for."""

from __future__ import annotations

import os
import re
import socket

_worker: str | None = None
_job: int | None = None


def process_name(pid: int | None = None) -> str:
    """Return a unique name for a process, by default this one; it is valid in a file name: `<host>-<pid>`."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', socket.gethostname())}-{os.getpid() if pid is None else pid}"


def become_worker() -> None:
    """Mark this process as a worker of another process's job; `worker` then returns its name."""
    global _worker
    _worker = process_name()


def worker() -> str | None:
    """Return the name of this process among the workers of its job; None in the process of the job itself.

    A process that a worker forks is a worker only after it calls `become_worker` itself.
    """
    return _worker if _worker is not None and _worker.endswith(f"-{os.getpid()}") else None


def forget_worker() -> None:
    """Undo `become_worker`."""
    global _worker
    _worker = None


def keep_for(pid: int) -> None:
    """Record that this process keeps the run of another process's job."""
    global _job
    _job = pid


def job() -> int:
    """Return the id of the job's process: this process, unless it keeps the run of another one."""
    return os.getpid() if _job is None else _job


def rank() -> int | None:
    """Return the rank that a launcher such as torchrun gave this process; None without a launcher or other ranks."""
    text, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdecimal() and size != "1" else None


def node() -> str | None:
    """Return the name of this machine if a launcher has started the job on several machines; otherwise None."""
    sizes = [os.environ.get(name, "") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NNODES")]
    world, here, nodes = (int(size) if size.isdecimal() else 0 for size in sizes)
    return socket.gethostname() if 0 < here < world or (world > 1 and not here and nodes > 1) else None


def leads_node() -> bool:
    """Return whether this is the first process on its machine, in a job that a launcher started on several machines."""
    return node() is not None and os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID")) == "0"
