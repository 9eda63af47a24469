"""Promises of gpt_core.generation.linear_kernels."""

import pytest
import torch

from gpt_core.generation import linear_kernels
from gpt_core.generation.linear_kernels import can_compute_int8, can_pack, int8_linear, packed_linear, plain_linear

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

    monkeypatch.setattr("gpt_core.generation.linear_kernels.packed_linear", missing)
    assert not can_pack(CPU, torch.float32)


def test_packing_is_refused_where_the_result_is_wrong(monkeypatch):
    def wrong(weight, bias, *, gelu):
        return lambda x: plain_linear(weight, bias, gelu=gelu)(x) + 0.5

    monkeypatch.setattr("gpt_core.generation.linear_kernels.packed_linear", wrong)
    assert not can_pack(CPU, torch.float32)


def test_packing_is_for_the_cpu_alone():
    assert not can_pack(torch.device("meta"), torch.float32)


needs_int8 = pytest.mark.skipif(not can_compute_int8(CPU), reason="int8 products are for CPUs with VNNI")


@needs_int8
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_an_int8_product_is_that_of_the_rounded_numbers(gelu, has_bias):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator)
    weight[3] = 0.0
    bias = torch.randn(96, generator=generator) if has_bias else None
    x = torch.randn(7, 64, generator=generator) * torch.logspace(-3, 3, 7)[:, None]
    x[2] = 0.0
    weight_scale = weight.double().abs().amax(1, keepdim=True) / 127
    x_scale = x.double().abs().amax(1, keepdim=True) / 127
    rounded_weight = (weight / weight_scale.clamp_min(1e-30)).round() * weight_scale
    rounded_x = (x / x_scale.clamp_min(1e-30)).round() * x_scale
    expected = plain_linear(rounded_weight, None if bias is None else bias.double(), gelu=gelu)(rounded_x)
    found = int8_linear(weight, bias, gelu=gelu)(x)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4)


@needs_int8
def test_the_bits_of_a_row_in_int8_do_not_depend_on_other_rows():
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 64, generator=generator) for rows in (96, 70))
    product = int8_linear(weight, None, gelu=True)
    expected = product(x)
    for rows in (1, 2, 5, 16, 33, 64):
        assert torch.equal(product(x[:rows]), expected[:rows])
        assert torch.equal(product(x[-rows:] * 1.0), expected[-rows:])


@needs_int8
def test_a_row_that_is_not_finite_stays_so_in_int8():
    x = torch.ones(3, 64)
    x[1, 5] = torch.nan
    found = int8_linear(torch.ones(96, 64), torch.zeros(96))(x)
    assert found.isfinite().all(1).tolist() == [True, False, True]


def test_int8_is_refused_where_sums_are_cut_off(monkeypatch):
    monkeypatch.setattr(linear_kernels, "int8_linear", lambda *_: lambda x: torch.full((len(x), 48), 60.0))
    assert not can_compute_int8(CPU)
    assert not can_compute_int8(torch.device("meta"))
