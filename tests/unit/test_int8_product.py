"""Promises of gpt_core.generation.int8_product: whole numbers exactly, whatever the rows and threads."""

import logging
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from gpt_core.generation import int8_product
from gpt_core.generation.int8_product import _works, native_product
from gpt_core.generation.linear_kernels import can_compute_int8, int8_linear


@pytest.fixture
def whole_numbers():
    if not _works():
        pytest.skip(
            "oneDNN computes int8 here; a CPU with AVX-512 VNNI and without AMX, and g++, have products of ours"
        )
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(1, 256, (37, 132), generator=generator).to(torch.uint8)
    weight = torch.randint(-127, 128, (160, 132), generator=generator).to(torch.int8)
    x[3], weight[5] = 255, -127
    return x, weight


def test_sums_are_exact_for_every_number_of_rows_and_threads(whole_numbers):
    x, weight = whole_numbers
    expected = (x.numpy().astype(np.int64) - 128) @ weight.numpy().astype(np.int64).T
    product = native_product(weight, torch.ones(len(weight)), None)
    threads = torch.get_num_threads()
    try:
        for torch_threads in (1, 3):
            torch.set_num_threads(torch_threads)
            for rows in range(1, len(x) + 1):
                found = product(x[:rows], torch.full((rows,), 127.0))  # each number stands for itself
                np.testing.assert_array_equal(found.numpy(), expected[:rows])
    finally:
        torch.set_num_threads(threads)


def test_sums_of_the_widest_models_do_not_overflow(whole_numbers):
    del whole_numbers
    weight = torch.full((32, 2**16), 127, dtype=torch.int8)
    weight[1] = -127
    x = torch.tensor([[255], [1]], dtype=torch.uint8).expand(2, 2**16).contiguous()
    found = native_product(weight, torch.ones(32), None)(x, torch.full((2,), 127.0))
    largest = 127 * 127 * 2**16
    assert found[:, :2].tolist() == [[largest, -largest], [-largest, largest]]
    assert native_product(torch.ones(32, 2**16 + 4, dtype=torch.int8), torch.ones(32), None) is None


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_scales_bias_and_gelu_follow(whole_numbers, gelu, has_bias):
    x, weight = whole_numbers
    generator = torch.Generator().manual_seed(2)
    scale, peak = torch.rand(160, generator=generator) / 1e4, torch.rand(37, generator=generator) * 10
    bias = torch.randn(160, generator=generator) if has_bias else None
    expected = (x.numpy().astype(np.float64) - 128) @ weight.numpy().astype(np.float64).T
    expected *= scale.double().numpy() * peak.double().numpy()[:, None] / 127
    expected += 0.0 if bias is None else bias.double().numpy()
    if gelu:
        expected *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (expected + 0.044715 * expected**3)))
    found = native_product(weight, scale, bias, gelu=gelu)(x, peak)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_bits_are_those_of_onednn(whole_numbers, monkeypatch):
    del whole_numbers
    if not can_compute_int8(torch.device("cpu")):
        pytest.skip("this torch has no int8 products to compare with")
    generator = torch.Generator().manual_seed(3)
    weight, bias, x = (torch.randn(size, generator=generator) for size in ((96, 64), (96,), (21, 64)))
    ours = int8_linear(weight, bias)(x)
    monkeypatch.setattr("gpt_core.generation.linear_kernels.native_product", lambda *_, **__: None)
    assert torch.equal(int8_linear(weight, bias)(x), ours)


def test_onednn_does_the_work_on_machines_with_amx_or_without_a_compiler(monkeypatch, caplog):
    weight, scale = torch.ones(32, 64, dtype=torch.int8), torch.ones(32)
    monkeypatch.setattr(int8_product, "_works", _works.__wrapped__)
    monkeypatch.setattr(int8_product, "has_matrix_units", lambda: True)
    assert native_product(weight, scale, None) is None
    monkeypatch.setattr(int8_product, "has_matrix_units", lambda: False)
    monkeypatch.setattr(int8_product, "_multiply", Mock(side_effect=OSError("no VNNI")))
    with caplog.at_level(logging.WARNING):
        assert native_product(weight, scale, None) is None
    assert not caplog.text


def test_code_that_computes_something_else_is_told_of_and_not_used(monkeypatch, caplog):
    monkeypatch.setattr(int8_product, "_works", _works.__wrapped__)
    monkeypatch.setattr(int8_product, "has_matrix_units", lambda: False)
    monkeypatch.setattr(int8_product, "_multiply", Mock)  # leaves what memory holds
    assert native_product(torch.ones(32, 64, dtype=torch.int8), torch.ones(32), None) is None
    assert "its C++ was compiled wrong" in caplog.text


@pytest.mark.parametrize("size", [(40, 64), (32, 66)])
def test_other_widths_are_left_to_onednn(size):
    assert native_product(torch.ones(size, dtype=torch.int8), torch.ones(size[0]), None) is None
