"""Resource usage of a job: of its container, if that has limits, or of its machine, and of the GPUs that it may use.

The names are those of MLflow's own system metrics, so that its web UI shows them. Nothing here loads MLflow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import psutil

_MEGABYTE = 1e6
"""Bytes, as in MLflow."""


class Resources:
    """Resource usage of one process, sampled repeatedly."""

    def __init__(self, pid: int, environment: Mapping[str, str]) -> None:
        """Measure the control groups and the network of process `pid`, and the GPUs that `environment` allows."""
        self._pid = pid
        self._memory = _memory_limit(pid)
        self._cpu = _cpu_quota(pid)
        self._clock = self._read_clock()
        self._received, self._sent = _traffic(pid)
        self._gpus = list(_gpus(environment))

    def sample(self) -> dict[str, float]:
        """Return the current values; the value of the CPU is the mean since the last sample."""
        return {**self._of_cpu(), **self._of_memory(), **self._of_disk(), **self._of_network(), **self._of_gpus()}

    def _read_clock(self) -> tuple[float, float]:
        """Return the CPU seconds used so far, and the CPU seconds available so far."""
        if self._cpu is not None:
            return self._cpu.used(), time.monotonic() * self._cpu.cores
        times = psutil.cpu_times()
        # Linux counts guest time as user time, too.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total - times.idle - getattr(times, "iowait", 0.0), total

    def _of_cpu(self) -> dict[str, float]:
        before, self._clock = self._clock, self._read_clock()
        used, possible = (now - then for now, then in zip(self._clock, before, strict=True))
        return {"cpu_utilization_percentage": round(100 * used / possible, 1)} if possible > 0 else {}

    def _of_memory(self) -> dict[str, float]:
        if self._memory is not None:
            used, total = self._memory.used(), self._memory.limit
        else:
            host = psutil.virtual_memory()
            used, total = host.used, host.total
        return {
            "system_memory_usage_megabytes": round(used / _MEGABYTE, 1),
            "system_memory_usage_percentage": round(100 * used / total, 1),
        }

    def _of_disk(self) -> dict[str, float]:
        usage = psutil.disk_usage(os.sep)
        return {
            "disk_usage_percentage": usage.percent,
            "disk_usage_megabytes": round(usage.used / _MEGABYTE, 1),
            "disk_available_megabytes": round(usage.free / _MEGABYTE, 1),
        }

    def _of_network(self) -> dict[str, float]:
        received, sent = _traffic(self._pid)
        return {
            "network_receive_megabytes": round((received - self._received) / _MEGABYTE, 3),
            "network_transmit_megabytes": round((sent - self._sent) / _MEGABYTE, 3),
        }

    def _of_gpus(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for number, gpu in enumerate(self._gpus):
            found.update({f"gpu_{number}_{name}": value for name, value in gpu().items()})
        return found


# Control groups of Linux, versions 1 and 2.


class _Group(NamedTuple):
    """The control group of a process."""

    folder: Path
    top: Path
    """The folder of the outermost visible group."""

    def upwards(self) -> Iterator[Path]:
        """Yield the folders of the group and of the groups around it."""
        folder = self.folder
        while True:
            yield folder
            if folder == self.top or self.top not in folder.parents:
                return
            folder = folder.parent


class _Memory(NamedTuple):
    limit: int
    """Bytes."""
    used: Callable[[], int]
    """Callable that returns the used bytes, without cached files that the kernel can drop at once."""


class _Cpu(NamedTuple):
    cores: float
    """Allowed CPU seconds per second."""
    used: Callable[[], float]
    """Callable that returns the CPU seconds used so far."""


def _groups(pid: int) -> dict[str, _Group]:
    """Return the control group of a process for each controller; the group of version 2 has the key ''."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return {}
    paths = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    found = {}
    for line in mounts:
        (_, _, _, root, top, *_), (kind, _, options) = (part.split(" ")[:n] for part, n in _halves(line))
        for name in [""] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else ():
            if name in paths and name not in found:
                # In a container without its own namespace, the path begins at a root that is not visible.
                inner = os.path.relpath(paths[name], root)
                folder = Path(top) if inner.startswith("..") else Path(top, inner)
                found[name] = _Group(folder if folder.is_dir() else Path(top), Path(top))
    return found


def _halves(line: str) -> Iterator[tuple[str, int]]:
    first, _, second = line.partition(" - ")
    yield first, 5
    yield second, 3


def _memory_limit(pid: int) -> _Memory | None:
    """Return the lowest memory limit of a process; None if only the size of the machine's memory limits it."""
    groups = _groups(pid)
    kinds = (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    found = [
        _Memory(limit, _memory_in_use(folder / usage, folder / "memory.stat", droppable))
        for controller, setting, usage, droppable in kinds
        if controller in groups
        for folder in groups[controller].upwards()
        if 0 < (limit := _number(folder / setting)) < psutil.virtual_memory().total
    ]
    return min(found, key=lambda one: one.limit, default=None)


def _memory_in_use(usage: Path, stat: Path, droppable: str) -> Callable[[], int]:
    return lambda: max(0, _number(usage) - _number(stat, droppable))


def _cpu_quota(pid: int) -> _Cpu | None:
    """Return the lowest CPU quota of a process; None without a quota."""
    groups = _groups(pid)
    found = []
    if "" in groups:
        for folder in groups[""].upwards():
            quota, _, period = _text(folder / "cpu.max").partition(" ")
            if quota.isdigit() and period:
                used = _seconds(folder / "cpu.stat", "usage_usec", 1e6)
                found.append(_Cpu(int(quota) / int(period), used))
    if "cpu" in groups:
        accounting = groups.get("cpuacct", groups["cpu"])
        for folder in groups["cpu"].upwards():
            allowed, each = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            if allowed > 0 and each > 0:
                beside = accounting.top / folder.relative_to(groups["cpu"].top) / "cpuacct.usage"
                place = beside if beside.exists() else accounting.folder / "cpuacct.usage"
                found.append(_Cpu(allowed / each, _seconds(place, None, 1e9)))
    return min(found, key=lambda one: one.cores, default=None)


def _seconds(path: Path, key: str | None, per_second: float) -> Callable[[], float]:
    return lambda: _number(path, key) / per_second


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # the file does not exist, or the process and its group have ended
        return ""


def _number(path: Path, key: str | None = None) -> int:
    """Return the number in a file, or after a key in the file; 0 if there is none."""
    text = _text(path)
    if key is not None:
        text = next((line.split()[1] for line in text.splitlines() if line.split()[:1] == [key]), "")
    return int(text) if text.lstrip("-").isdigit() else 0


def _traffic(pid: int) -> tuple[int, int]:
    """Return the bytes received and sent by the network of a process, or else of the machine; (0, 0) if unknown."""
    with suppress(OSError, ValueError, IndexError):
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
        columns = [line.partition(":")[2].split() for line in lines]
        return sum(int(column[0]) for column in columns), sum(int(column[8]) for column in columns)
    counters = psutil.net_io_counters()
    return (counters.bytes_recv, counters.bytes_sent) if counters else (0, 0)


def _gpus(environment: Mapping[str, str]) -> Iterator[Callable[[], dict[str, float]]]:
    """Yield a function that reads the usage of each NVIDIA GPU of a job, in the order in which the job sees them."""
    try:
        import pynvml
    except ImportError:
        return
    try:
        pynvml.nvmlInit()
        handles = list(_visible(pynvml, environment))
    except pynvml.NVMLError:  # no driver
        return
    for handle in handles:
        yield _reader(pynvml, handle)


def _visible(nvml: ModuleType, environment: Mapping[str, str]) -> Iterator[Any]:
    """Yield a handle of each GPU that is visible to CUDA; as in CUDA, the first name without a match ends the list."""
    every = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        yield from every
        return
    for name in map(str.strip, chosen.split(",")):
        if name.isdigit():
            fitting = every[int(name) : int(name) + 1]
        elif name.startswith("MIG-"):
            fitting = _by_uuid(nvml, name)
        else:
            fitting = [handle for handle in every if name and str(nvml.nvmlDeviceGetUUID(handle)).startswith(name)]
        if len(fitting) != 1:
            return
        yield from fitting


def _by_uuid(nvml: ModuleType, uuid: str) -> list[Any]:
    try:
        return [nvml.nvmlDeviceGetHandleByUUID(uuid)]
    except nvml.NVMLError:
        return []


def _reader(nvml: ModuleType, handle: Any) -> Callable[[], dict[str, float]]:
    def read() -> dict[str, float]:
        found: dict[str, float] = {}
        with suppress(nvml.NVMLError):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            found["memory_usage_percentage"] = round(100 * memory.used / memory.total, 1)
            found["memory_usage_megabytes"] = round(memory.used / _MEGABYTE, 1)
        with suppress(nvml.NVMLError):  # a partition of a GPU (MIG) has no utilization
            found["utilization_percentage"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
        with suppress(nvml.NVMLError):
            watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
            limit = nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
            found["power_usage_watts"] = round(watts, 1)
            found["power_usage_percentage"] = round(100 * watts / limit, 1)
        return found

    return read
