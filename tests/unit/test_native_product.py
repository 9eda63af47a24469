"""Promises of gpt_core.generation.native_product: sums in int8 are exact, and a row's bits the same in any company."""

import logging
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from gpt_core.generation import native_product
from gpt_core.generation.linear_kernels import can_compute_int8, int8_linear
from gpt_core.generation.native_product import _bf16_works, _int8_works, bf16_product, int8_product


def int8(*args, **options):
    product = int8_product(*args, **options)
    assert product is not None
    return product


def bf16(*args, **options):
    product = bf16_product(*args, **options)
    assert product is not None
    return product


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def numbers_of_threads():
    for count in (1, 3):
        torch.set_num_threads(count)
        yield count


@pytest.fixture
def whole_numbers():
    if not _int8_works():
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
    product = int8(weight, torch.ones(len(weight)), None)
    for _ in numbers_of_threads():
        for rows in range(1, len(x) + 1):
            found = product(x[:rows], torch.full((rows,), 127.0))  # each number stands for itself
            np.testing.assert_array_equal(found.numpy(), expected[:rows])


def test_sums_of_the_widest_models_do_not_overflow(whole_numbers):
    del whole_numbers
    weight = torch.full((32, 2**16), 127, dtype=torch.int8)
    weight[1] = -127
    x = torch.tensor([[255], [1]], dtype=torch.uint8).expand(2, 2**16).contiguous()
    found = int8(weight, torch.ones(32), None)(x, torch.full((2,), 127.0))
    largest = 127 * 127 * 2**16
    assert found[:, :2].tolist() == [[largest, -largest], [-largest, largest]]
    assert int8_product(torch.ones(32, 2**16 + 4, dtype=torch.int8), torch.ones(32), None) is None


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_row_in_int8_has_the_same_bits_among_any_number_of_rows(whole_numbers, gelu, has_bias):
    x, weight = whole_numbers
    generator = torch.Generator().manual_seed(2)
    scale, peak = torch.rand(160, generator=generator) / 1e4, torch.rand(37, generator=generator) * 10
    product = int8(weight, scale, torch.randn(160, generator=generator) if has_bias else None, gelu=gelu)
    expected = torch.cat([product(x[row : row + 1], peak[row : row + 1]) for row in range(len(x))])
    for rows in range(len(x) + 1):
        assert torch.equal(product(x[:rows], peak[:rows]), expected[:rows])


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
    found = int8(weight, scale, bias, gelu=gelu)(x, peak)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_what_stands_behind_the_sums_is_what_stands_behind_those_of_onednn(whole_numbers, monkeypatch):
    del whole_numbers
    if not can_compute_int8(torch.device("cpu")):
        pytest.skip("this torch has no int8 products to compare with")
    generator = torch.Generator().manual_seed(3)
    weight, bias, x = (torch.randn(size, generator=generator) for size in ((96, 64), (96,), (21, 64)))
    ours = int8_linear(weight, bias)(x)
    monkeypatch.setattr("gpt_core.generation.linear_kernels.int8_product", lambda *_, **__: None)
    # One rounding apart where a compiler fuses multiplication and addition in one of the two alone.
    torch.testing.assert_close(int8_linear(weight, bias)(x), ours, rtol=1e-6, atol=2e-6)


@pytest.fixture
def bf16_numbers():
    if not _bf16_works():
        pytest.skip(
            "oneDNN computes bf16 here; a CPU with AVX-512 BF16 and without AMX, and g++, have products of ours"
        )
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(size, generator=generator).bfloat16() for size in ((37, 198), (160, 198), (160,))]


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_bf16_products_are_right_to_one_rounding(bf16_numbers, gelu, has_bias):
    x, weight, bias = bf16_numbers
    expected = x.double().numpy() @ weight.double().numpy().T + (bias.double().numpy() if has_bias else 0.0)
    if gelu:
        expected *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (expected + 0.044715 * expected**3)))
    found = bf16(weight, bias if has_bias else None, gelu=gelu)(x)
    assert found.dtype == torch.bfloat16
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=2**-8, atol=1e-4)


def test_a_row_in_bf16_has_the_same_bits_among_any_number_of_rows_and_threads(bf16_numbers):
    x, weight, bias = bf16_numbers
    product = bf16(weight, bias, gelu=True)
    expected = torch.cat([product(row[None]) for row in x])
    for _ in numbers_of_threads():
        for rows in range(len(x) + 1):
            assert torch.equal(product(x[len(x) - rows :]), expected[len(x) - rows :])


def test_a_row_in_bf16_that_is_not_finite_spoils_itself_alone(bf16_numbers):
    x, weight, bias = bf16_numbers
    x[1, 5], x[2, 7] = torch.nan, torch.inf
    finite = bf16(weight, bias)(x).isfinite()
    assert finite.all(1).tolist() == [row not in {1, 2} for row in range(len(x))]
    assert not finite[1:3].any()


INT8 = (_int8_works, lambda: int8_product(torch.ones(32, 64, dtype=torch.int8), torch.ones(32), None))
BF16 = (_bf16_works, lambda: bf16_product(torch.ones(32, 64, dtype=torch.bfloat16), None))


@pytest.mark.parametrize(("works", "make"), [INT8, BF16])
def test_onednn_does_the_work_on_machines_with_amx_or_without_a_compiler(monkeypatch, caplog, works, make):
    monkeypatch.setattr(native_product, works.__name__, works.__wrapped__)
    monkeypatch.setattr(native_product, "has_matrix_units", lambda: True)
    assert make() is None
    monkeypatch.setattr(native_product, "has_matrix_units", lambda: False)
    monkeypatch.setattr(native_product, "_compiled_multiply", Mock(side_effect=OSError("no such instructions")))
    with caplog.at_level(logging.WARNING):
        assert make() is None
    assert not caplog.text


@pytest.mark.parametrize(("works", "make"), [INT8, BF16])
def test_code_that_computes_something_else_is_told_of_and_not_used(monkeypatch, caplog, works, make):
    monkeypatch.setattr(native_product, works.__name__, works.__wrapped__)
    monkeypatch.setattr(native_product, "has_matrix_units", lambda: False)
    monkeypatch.setattr(native_product, "_compiled_multiply", lambda _: Mock())  # leaves what memory holds
    assert make() is None
    assert "C++ was compiled wrong" in caplog.text


@pytest.mark.parametrize("rows", range(1, 9))
@pytest.mark.parametrize(("works", "make"), [INT8, BF16])
def test_code_that_is_wrong_for_one_number_of_rows_is_not_used(monkeypatch, caplog, works, make, rows):
    if not works():
        pytest.skip("oneDNN computes here")
    compiled = native_product._compiled_multiply

    def without_bias(kind):
        def multiply(arguments, *panels):
            if arguments._obj.num_rows == rows:
                arguments._obj.bias = None
            compiled(kind)(arguments, *panels)

        return multiply

    monkeypatch.setattr(native_product, works.__name__, works.__wrapped__)
    monkeypatch.setattr(native_product, "_compiled_multiply", without_bias)
    assert make() is None
    assert "C++ was compiled wrong" in caplog.text


@pytest.mark.parametrize("size", [(40, 64), (32, 63)])
def test_other_widths_are_left_to_onednn(size):
    assert int8_product(torch.ones(size, dtype=torch.int8), torch.ones(size[0]), None) is None
    assert bf16_product(torch.ones(size, dtype=torch.bfloat16), None) is None
