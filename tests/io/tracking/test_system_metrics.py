"""System metrics of the job's container and GPUs, sampled outside the job."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow.entities import Metric
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from autogen_team._ship import resources
from autogen_team.io.services import MlflowService

pytestmark = pytest.mark.usefixtures("forked_children")

GROUPS = Path("/sys/fs/cgroup")
EVERY = 0.2
OFTEN = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": str(EVERY)}
AT_ONCE = """
from autogen_team._capture import write_behind
write_behind._HANDOVER_TO_DATABASE = write_behind._HANDOVER_TO_SERVER = 0.0
"""
JOB = """
import sys, threading, time, mlflow
from autogen_team.io.services import MlflowService
with MlflowService(autolog_disable=True, durable=DURABLE) as service, service.run_context(
    service.RunConfig(name="x", log_system_metrics=True)
) as run:
    print("run", run.info.run_id, flush=True)
    sys.stdin.readline()
    print([thread.name for thread in threading.enumerate()])
"""


def histories(uri: str, run_id: str) -> dict[str, list[Metric]]:
    """Return the samples of each system metric."""
    client = mlflow.MlflowClient(uri)
    keys = [key for key in client.get_run(run_id).data.metrics if key.startswith("system/")]
    return {key: client.get_metric_history(run_id, key) for key in keys}


def sampled(uri: str, run_id: str) -> dict[str, list[int]]:
    """Return the steps of each system metric."""
    return {key: [one.step for one in history] for key, history in histories(uri, run_id).items()}


@pytest.mark.parametrize("store", ["store_uri", "mlflow_server"])
def test_the_agent_samples_with_the_names_of_mlflow(start_python, request, wait_until, store):
    """After the agent has taken over, it samples instead of the job's thread; steps follow the time."""
    uri = request.getfixturevalue(store)
    shipped = "(one,) = write_behind._working.values(); print('by the agent:', one.shipper._handed_over)"
    code = f"{AT_ONCE}{JOB.replace('DURABLE', 'True')}".replace("    print([", f"    {shipped}; print([")
    job = start_python("-c", code, stdin=subprocess.PIPE, MLFLOW_TRACKING_URI=uri, **OFTEN)
    run_id = job.wait_for("run ").split()[1]
    wait_until(lambda: max(map(len, sampled(uri, run_id).values()), default=0) > 12)
    status, out, err = job.finish("\n")
    found = histories(uri, run_id)

    assert status == 0, err
    assert "by the agent: True" in out
    assert "SystemMetrics" not in out
    monitor = SystemMetricsMonitor(run_id, tracking_uri=uri)
    assert found.keys() == {f"system/{key}" for key in [*monitor.collect_metrics()]}
    for history in found.values():
        steps = [one.step for one in history]
        assert steps == sorted(set(steps))
        intervals = (history[-1].timestamp - history[0].timestamp) / (1000 * EVERY)
        assert abs(steps[-1] - steps[0] - intervals) <= 2, "steps must follow the time, within rounding"


def test_sampling_continues_after_an_agent_was_killed(start_python, store_uri, wait_until, fresh_agents, tmp_path):
    """The job's thread samples until there is another agent."""
    job = start_python("-c", JOB.replace("DURABLE", "True"), stdin=subprocess.PIPE, **OFTEN)
    run_id = job.wait_for("run ").split()[1]

    def agents() -> list[psutil.Process]:
        every = psutil.process_iter(["cmdline"])
        return [
            one for one in every if any(str(tmp_path / "state" / "agent") in word for word in one.info["cmdline"] or [])
        ]

    wait_until(lambda: agents() and sampled(store_uri, run_id))
    for agent in agents():
        agent.kill()
    before = max(map(len, sampled(store_uri, run_id).values()))
    wait_until(lambda: max(map(len, sampled(store_uri, run_id).values())) > before + 3)

    assert job.finish("\n")[0] == 0
    for steps in sampled(store_uri, run_id).values():
        assert steps == sorted(set(steps))


def test_a_resumed_run_continues_the_steps(store_uri, monkeypatch, wait_until):
    """No system metric has a step twice."""
    monkeypatch.setenv(*next(iter(OFTEN.items())))
    with MlflowService(tracking_uri=store_uri, autolog_disable=True) as service:
        with service.run_context(service.RunConfig(name="x", log_system_metrics=True)) as run:
            run_id = run.info.run_id
            wait_until(lambda: sampled(store_uri, run_id))
        before = max(map(len, sampled(store_uri, run_id).values()))
        with service.run_context(service.RunConfig(name="x", run_id=run_id, log_system_metrics=True)):
            wait_until(lambda: max(map(len, sampled(store_uri, run_id).values())) > before)

    for steps in sampled(store_uri, run_id).values():
        assert steps == sorted(set(steps))


def test_without_a_journal_a_thread_of_mlflow_logs_the_same(start_python, store_uri, wait_until):
    """MLflow's thread logs our values too."""
    job = start_python("-c", JOB.replace("DURABLE", "False"), stdin=subprocess.PIPE, **OFTEN)
    run_id = job.wait_for("run ").split()[1]
    wait_until(lambda: sampled(store_uri, run_id))
    _, out, err = job.finish("\n")

    assert "SystemMetricsMonitor" in out, err


@pytest.fixture
def group():
    """Return a function that creates a version 1 control group with these settings, and returns its folder."""
    made = []

    def make(controller: str, **settings: object) -> Path:
        folder = GROUPS / controller / f"autogen-team-{os.getpid()}"
        if not os.access(GROUPS / controller / "tasks", os.W_OK):
            pytest.skip("control groups cannot be created here")
        folder.mkdir()
        made.append(folder)
        for name, value in settings.items():
            (folder / f"{controller}.{name}").write_text(str(value))
        return folder

    yield make
    for folder in made:
        folder.rmdir()


@pytest.fixture
def busy():
    """Return a function that starts a process in control groups; it holds memory and computes."""
    started = []

    def start(*folders: Path) -> psutil.Process:
        code = (
            "import sys\nheld = bytearray(100_000_000)\nsys.stdin.readline()\nprint('!', flush=True)\nwhile True: pass"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        for folder in folders:
            (folder / "cgroup.procs").write_text(str(process.pid))
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_memory_is_measured_against_the_control_group(group, busy):
    """Memory is given in percent of the group's limit, or of an outer group's if that is smaller."""
    outer = group("memory", limit_in_bytes=400_000_000)
    inner = outer / "inner"
    inner.mkdir()
    try:
        process = busy(inner)
        figures = resources.Resources(process.pid, {}).sample()
        usage = int((outer / "memory.usage_in_bytes").read_text())
        process.kill()
        process.wait()
    finally:
        inner.rmdir()

    assert figures["system_memory_usage_megabytes"] == pytest.approx(usage / 1e6, abs=20)
    assert figures["system_memory_usage_percentage"] == pytest.approx(100 * usage / 400e6, abs=5)


def test_cpu_is_measured_against_the_quota(group, busy):
    """The quota is a fifth of a core; on a busy machine the process may get less."""
    cpu = group("cpu", cfs_quota_us=20_000)
    accounting = group("cpuacct")
    process = busy(cpu, accounting)
    used, began = int((accounting / "cpuacct.usage").read_text()), time.monotonic()
    own = resources.Resources(process.pid, {})
    while int((accounting / "cpuacct.usage").read_text()) < used + 200_000_000:  # a second at a fifth of a core
        time.sleep(0.05)
    figure = own.sample()["cpu_utilization_percentage"]
    used = int((accounting / "cpuacct.usage").read_text()) - used

    assert figure == pytest.approx(100 * used / 1e9 / (0.2 * (time.monotonic() - began)), rel=0.3)


@pytest.fixture
def version_2(tmp_path, monkeypatch):
    """Return a function that writes the files of a version 2 control group and of its outer group."""
    top = tmp_path / "cgroup"
    folder = top / "pod" / "container"
    folder.mkdir(parents=True)
    monkeypatch.setattr(resources, "_groups", lambda _: {"": resources._Group(folder, top)})

    def write(inner: dict[str, str], outer: dict[str, str]) -> Path:
        for place, files in ((folder, inner), (folder.parent, outer)):
            for name, text in files.items():
                (place / name).write_text(text)
        return folder

    return write


def test_limits_of_a_control_group_of_version_2_are_read(version_2):
    """Limits of version 2 are read from its files; `max` means none."""
    folder = version_2(
        {
            "memory.max": "max\n",
            "memory.current": "5",
            "cpu.max": "50000 100000\n",
            "cpu.stat": "usage_usec 1000000\nuser_usec 7\n",
        },
        {
            "memory.max": "200000000\n",
            "memory.current": "90000000\n",
            "memory.stat": "anon 1\ninactive_file 40000000\n",
            "cpu.max": "max 100000\n",
        },
    )
    began = time.monotonic()
    own = resources.Resources(os.getpid(), {})
    begun = time.monotonic()
    (folder / "cpu.stat").write_text("usage_usec 1250000\nuser_usec 7\n")
    while time.monotonic() < begun + 0.5:
        time.sleep(0.01)
    least = time.monotonic() - begun
    figures = own.sample()
    longest = time.monotonic() - began

    assert figures["system_memory_usage_megabytes"] == 50
    assert figures["system_memory_usage_percentage"] == 25
    # A quarter of a second of CPU at half a core.
    assert 100 * 0.25 / 0.5 / longest - 0.1 <= figures["cpu_utilization_percentage"] <= 100 * 0.25 / 0.5 / least + 0.1


def test_a_process_without_limits_has_the_values_of_the_machine(monkeypatch):
    """The values are those of the machine, as in MLflow."""
    monkeypatch.setattr(resources, "_groups", lambda _: {})
    figures = resources.Resources(os.getpid(), {}).sample()
    host = psutil.virtual_memory()

    assert figures["system_memory_usage_megabytes"] == pytest.approx(host.used / 1e6, rel=0.2)
    assert figures["disk_usage_percentage"] == pytest.approx(psutil.disk_usage("/").percent, abs=1)


@pytest.fixture
def gpus(monkeypatch):
    """Provide NVIDIA's library with four GPUs and a MIG instance."""
    uuids = ["GPU-aaa1", "GPU-aaa2", "GPU-bbb3", "GPU-ccc4"]

    class NVMLError(Exception):
        pass

    def part(uuid: str) -> str:
        if uuid != "MIG-ddd5":
            raise NVMLError
        return uuid

    def of_whole(handle: str, value: object) -> object:
        if handle.startswith("MIG"):
            raise NVMLError
        return value

    fake = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(uuids),
        nvmlDeviceGetHandleByIndex=uuids.__getitem__,
        nvmlDeviceGetHandleByUUID=part,
        nvmlDeviceGetUUID=lambda handle: handle,
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(used=int(handle[-1]) * 1e9, total=10e9),
        nvmlDeviceGetUtilizationRates=lambda handle: of_whole(handle, types.SimpleNamespace(gpu=int(handle[-1]))),
        nvmlDeviceGetPowerUsage=lambda handle: of_whole(handle, 100_000),
        nvmlDeviceGetEnforcedPowerLimit=lambda _: 400_000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        (None, [1, 2, 3, 4]),
        ("2", [3]),
        ("3,0", [4, 1]),
        ("GPU-aaa2,GPU-c", [2, 4]),
        ("MIG-ddd5", [5]),
        ("", []),
        ("-1", []),
        ("1,9,0", [2]),
        ("GPU-aaa", []),
        ("MIG-other", []),
    ],
)
def test_the_gpus_are_those_that_the_job_may_use(gpus, chosen, seen):
    """GPUs are numbered from 0 in the order of CUDA_VISIBLE_DEVICES; an unknown or ambiguous name ends the list."""
    environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    figures = resources.Resources(os.getpid(), environment).sample()

    used = itertools.takewhile(bool, (figures.get(f"gpu_{n}_memory_usage_megabytes") for n in itertools.count()))
    assert [megabytes / 1000 for megabytes in used] == seen


def test_a_mig_instance_has_the_available_values(gpus):
    """A MIG instance has memory, but neither load nor power; a whole GPU has all, under MLflow's names."""
    figures = resources.Resources(os.getpid(), {"CUDA_VISIBLE_DEVICES": "MIG-ddd5,0"}).sample()

    of_gpus = {key: value for key, value in figures.items() if key.startswith("gpu")}
    assert of_gpus == {
        "gpu_0_memory_usage_percentage": 50,
        "gpu_0_memory_usage_megabytes": 5000,
        "gpu_1_memory_usage_percentage": 10,
        "gpu_1_memory_usage_megabytes": 1000,
        "gpu_1_utilization_percentage": 1,
        "gpu_1_power_usage_watts": 100,
        "gpu_1_power_usage_percentage": 25,
    }
