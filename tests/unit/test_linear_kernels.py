"""Promises of gpt_core.linear_kernels."""

import pytest
import torch

from gpt_core.linear_kernels import can_pack, packed_linear, plain_linear

CPU = torch.device("cpu")


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_a_packed_product_is_the_plain_one_to_rounding(gelu, has_bias, rows):
    if not can_pack(CPU, torch.float32):
        pytest.skip("this torch has no packed linear layers; engines use the plain ones")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 32, generator=generator)
    bias = torch.randn(96, generator=generator) if has_bias else None
    x = torch.randn(rows, 32, generator=generator)
    expected = plain_linear(weight, bias, gelu=gelu)(x)
    assert torch.allclose(packed_linear(weight, bias, gelu=gelu)(x), expected, atol=1e-4)


def test_packing_is_refused_where_the_operators_are_missing(monkeypatch):
    def missing(*_, **__):
        raise AttributeError("no such operator")

    monkeypatch.setattr("gpt_core.linear_kernels.packed_linear", missing)
    assert not can_pack(CPU, torch.float32)


def test_packing_is_refused_where_the_result_is_wrong(monkeypatch):
    def wrong(weight, bias, *, gelu):
        return lambda x: plain_linear(weight, bias, gelu=gelu)(x) + 0.5

    monkeypatch.setattr("gpt_core.linear_kernels.packed_linear", wrong)
    assert not can_pack(CPU, torch.float32)


def test_packing_is_for_the_cpu_alone():
    assert not can_pack(torch.device("meta"), torch.float32)
