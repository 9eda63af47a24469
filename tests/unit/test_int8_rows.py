"""Promises of gpt_core.generation.int8_rows: rows rounded to 8 bits and scaled back, in C++ as in PyTorch and NumPy."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from gpt_core.generation.int8_rows import NativeRows, TorchRows, _native_rows, int8_rows
from gpt_core.generation.native_code import CompileError


@pytest.fixture(params=[TorchRows, NativeRows])
def rows(request):
    try:
        return request.param()
    except CompileError as error:
        pytest.skip(f"no C++ compiler that knows this machine; install g++ ({error})")


def example(num_rows=9, width=48):
    return (
        torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-3, 3, num_rows)[:, None]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_rounded_to_the_nearest_of_127_steps_a_side(rows, dtype):
    x = example().to(dtype)
    rounded, peak = rows.quantize(x)
    exact = x.double().numpy()
    largest = np.abs(exact).max(1)
    np.testing.assert_array_equal(peak.numpy(), largest.astype(np.float32))
    steps = rounded.numpy().astype(np.int64) - 128
    # Within half a step, and what the type loses before it.
    assert np.abs(steps - exact * 127 / largest[:, None]).max() < (0.501 if dtype == torch.float32 else 0.8)
    assert np.abs(steps).max(1).tolist() == [127] * len(x)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_sums_are_scaled_back_with_bias_and_gelu(rows, with_bias, gelu):
    sums, peak = example() * 100, example(1, 9)[0].abs()
    bias = example(1, 48)[0] * 1000 if with_bias else None
    found = rows.rescale(sums.clone(), peak, bias, gelu=gelu)
    expected = sums.double().numpy() * (peak.double().numpy() / 127)[:, None]
    expected += 0 if bias is None else bias.double().numpy()
    if gelu:
        expected *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (expected + 0.044715 * expected**3)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_row_of_zeros_stays_zero_and_one_with_what_is_no_number_spoils_itself_alone(rows):
    x = example(3)
    x[0], x[1, 5] = 0.0, torch.nan
    rounded, peak = rows.quantize(x)
    found = rows.rescale((rounded.float() - 128), peak, None, gelu=False)
    assert (found[0] == 0).all()
    assert found[1].isnan().all()
    np.testing.assert_allclose(found[2].numpy(), x[2].numpy(), atol=x[2].abs().max().item() / 254 * 1.01)


def test_infinity_does_not_pass_for_a_number(rows):
    x = example(2)
    x[0, 3] = torch.inf
    rounded, peak = rows.quantize(x)
    assert not rows.rescale(rounded.float() - 128, peak, None, gelu=False)[0].isfinite().any()


def test_bits_depend_neither_on_company_nor_on_threads():
    """Of the C++ alone: PyTorch's GELU rounds the end of what a thread gets otherwise, which engines try at load."""
    rows = int8_rows(48, 48)
    if isinstance(rows, TorchRows):
        pytest.skip("no C++ compiler that knows this machine; install g++")
    x, bias = example(), example(1, 48)[0]
    threads = torch.get_num_threads()
    try:
        for torch_threads in (1, 3):
            torch.set_num_threads(torch_threads)
            rounded, peak = rows.quantize(x)
            scaled = rows.rescale(x.clone(), peak, bias, gelu=True)
            for row in range(len(x)):
                own_rounded, own_peak = rows.quantize(x[row : row + 1])
                assert torch.equal(own_rounded[0], rounded[row])
                own_scaled = rows.rescale(x[row : row + 1].clone(), own_peak, bias, gelu=True)
                assert torch.equal(own_scaled[0], scaled[row])
    finally:
        torch.set_num_threads(threads)


def test_what_torch_makes_by_default_makes_no_difference(rows):
    """Peaks in bf16 would have half the memory that C++ writes to."""
    x = example(1000, 64)
    expected = rows.quantize(x)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = rows.quantize(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[1].dtype == torch.float32
    assert all(map(torch.equal, found, expected))


def test_a_compiler_that_is_missing_or_wrong_is_told_of(monkeypatch, caplog):
    monkeypatch.setattr("gpt_core.generation.int8_rows.compiled", Mock(side_effect=FileNotFoundError("no c++")))
    assert _native_rows.__wrapped__() is None
    assert "int8 is slower than it could be, its C++ was not compiled: no c++" in caplog.text
    monkeypatch.setattr("gpt_core.generation.int8_rows.compiled", Mock())  # whose functions do nothing
    assert _native_rows.__wrapped__() is None
    assert "int8 is slower than it could be, its C++ was compiled wrong" in caplog.text


def test_widths_that_are_no_whole_vectors_are_left_to_pytorch():
    assert isinstance(int8_rows(40, 48), TorchRows)
    assert isinstance(int8_rows(48, 40), TorchRows)
