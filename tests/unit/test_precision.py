"""Promises of gpt_core.model.precision."""

import pytest
import torch

from gpt_core.errors import ResourceError
from gpt_core.model import precision
from gpt_core.model.precision import choose_dtype, peak_flops

CPU = torch.device("cpu")


@pytest.fixture
def cpu_with(monkeypatch):
    """Make the CPU answer yes to exactly the given questions."""

    def pretend(*answers):
        monkeypatch.setattr(precision, "_cpu_has", lambda question: question in answers)

    return pretend


@pytest.mark.parametrize("instructions", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_auto_takes_bf16_on_cpus_with_any_instructions_for_it(cpu_with, instructions):
    cpu_with(instructions)
    assert choose_dtype("auto", CPU) == torch.bfloat16
    cpu_with()
    assert choose_dtype("auto", CPU) == torch.float32


def test_bf16_on_request_needs_instructions_for_it(cpu_with):
    cpu_with("_is_avx512_bf16_supported")
    assert choose_dtype("bf16", CPU) == torch.bfloat16
    cpu_with()
    with pytest.raises(ResourceError, match="without bf16 instructions; expected fp32 or auto"):
        choose_dtype("bf16", CPU)


def test_fp32_is_always_there(cpu_with):
    cpu_with()
    assert choose_dtype("fp32", CPU) == torch.float32


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Some New Device", None),
    ],
)
def test_a_peak_is_the_data_sheets_or_none_at_all(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(CPU) is None
