"""The load of a machine under MLflow's names, GPUs asked through a stand-in for NVIDIA's library."""

import types
from unittest.mock import Mock

import pytest
from ray.exceptions import RayError

from cluster.recording import gpu_load
from cluster.recording.gpu_load import GpuLoad
from cluster.recording.node_metrics import NodeSamplers
from cluster.recording.system_metrics import MachineLoad


class UnsupportedError(Exception):
    pass


def _power(handle):
    if handle == 1:
        raise UnsupportedError
    return 250_000


LIBRARY = types.SimpleNamespace(
    NVMLError=UnsupportedError,
    nvmlInit=lambda: None,
    nvmlDeviceGetCount=lambda: 2,
    nvmlDeviceGetHandleByIndex=lambda index: index,
    nvmlDeviceGetUtilizationRates=lambda handle: types.SimpleNamespace(gpu=40 + handle),
    nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(used=1 << 30, total=4 << 30),
    nvmlDeviceGetPowerUsage=_power,
)
MEMORY = {"memory_usage_megabytes": 1024.0, "memory_usage_percentage": 25.0}


def test_each_gpu_is_told_without_what_it_does_not_support(monkeypatch):
    monkeypatch.setattr(gpu_load, "_bindings", lambda: LIBRARY)
    first = {"utilization_percentage": 40.0, **MEMORY, "power_usage_watts": 250.0}
    second = {"utilization_percentage": 41.0, **MEMORY}
    expected = {f"gpu_0_{name}": value for name, value in first.items()}
    assert GpuLoad().sample() == expected | {f"gpu_1_{name}": value for name, value in second.items()}


def test_a_library_that_does_not_start_means_no_gpus(monkeypatch):
    def fails():
        raise UnsupportedError

    broken = types.SimpleNamespace(**{**vars(LIBRARY), "nvmlInit": fails})
    monkeypatch.setattr(gpu_load, "_bindings", lambda: broken)
    assert GpuLoad().sample() == {}


@pytest.mark.parametrize(("node", "prefix"), [(None, "system/"), ("worker-7", "system/worker-7/")])
def test_a_machine_has_the_names_of_the_page_with_its_own_name_inside(node, prefix):
    sample = MachineLoad(node).sample()
    assert {name.removeprefix(prefix) for name in sample} >= {
        "cpu_utilization_percentage",
        "system_memory_usage_percentage",
        "network_receive_megabytes",
    }
    assert all(name.startswith(prefix) and value >= 0 for name, value in sample.items())


def test_the_late_answer_of_a_sampler_that_was_dropped_leaves_its_nodes_new_one(monkeypatch):
    old, new, received = Mock(), Mock(), []
    answers = {old.sample.remote(): RayError(), new.sample.remote(): {"load": 1.0}}

    def get(reference):
        if isinstance(answers[reference], RayError):
            raise answers[reference]
        return answers[reference]

    monkeypatch.setattr("ray.get_runtime_context", Mock())
    monkeypatch.setattr("ray.wait", lambda asked, **_: (asked, []))
    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("ray.kill", Mock())
    samplers = NodeSamplers(received.append, seconds=600)
    for sampler in (old, new):  # the node works, is idle, and works again
        samplers._drop("node")
        samplers._samplers["node"] = sampler
        samplers._ask()
    samplers._take()
    assert received == [{"load": 1.0}]
    assert samplers._samplers == {"node": new}
    samplers.stop()
