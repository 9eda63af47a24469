"""Promises of cluster.serving.deployment that need no Ray."""

import pytest

from cluster.serving.deployment import Generator, generator_deployment, with_settled_precision
from cluster.session import Cluster
from gpt_core.errors import ResourceError
from gpt_core.settings import EngineSettings

HERE = Cluster(None, num_cpus=2, num_gpus=0)


@pytest.mark.parametrize(("has_instructions", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_settled_once_for_all_replicas(monkeypatch, has_instructions, expected):
    monkeypatch.setattr("gpt_core.model.precision.can_compute_bf16", lambda device: has_instructions)
    assert with_settled_precision(EngineSettings(num_replicas=2), HERE).precision == expected
    assert with_settled_precision(EngineSettings(precision="int8"), HERE).precision == "int8"


def test_replicas_that_do_not_fit_are_refused_before_anything_runs():
    with pytest.raises(ResourceError, match="a need of 3 CPUs"):
        with_settled_precision(EngineSettings(num_replicas=3), HERE)
    with pytest.raises(ResourceError, match=r"engine.device gpu: .* a need of 1 GPUs; .* the 0 GPUs of this machine"):
        with_settled_precision(EngineSettings(device="gpu"), HERE)


@pytest.mark.parametrize(
    ("num_gpus", "device", "expected"), [(1, "auto", "cpu"), (2, "auto", "gpu"), (0, "gpu", "gpu")]
)
def test_a_replica_computes_on_what_was_reserved_for_it_whatever_its_node_has(num_gpus, device, expected):
    deployment = generator_deployment("none", EngineSettings(num_replicas=2, device=device), Cluster("a", 2, num_gpus))
    bound = deployment._bound_deployment
    _, settings, _ = bound.init_args
    assert settings.device == expected
    assert (bound.ray_actor_options["num_gpus"] > 0) == (expected == "gpu")


def test_a_replica_that_has_no_gpu_where_one_was_asked_for_says_so(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ResourceError, match="found no GPU in this process"):
        Generator("none", EngineSettings(device="gpu"))
