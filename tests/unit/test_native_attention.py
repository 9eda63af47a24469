"""Promises of gpt_core.generation.native_attention: a row attends to its own stored keys, and to nothing else."""

import math
import subprocess

import numpy as np
import pytest
import torch

from gpt_core.generation import decode_attention, native_attention
from gpt_core.generation.native_attention import native_attention as attention_for

POSITIONS = torch.tensor([0, 1, 15, 16, 17, 63, 40])


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if attention_for(torch.float32, 32) is None:
        pytest.skip("no C++ compiler that knows this machine; install g++")


def attention(dtype, width):
    found = attention_for(dtype, width)
    assert found is not None
    return found


def example(dtype, width, num_heads=3, num_keys=64):
    generator = torch.Generator().manual_seed(width)
    size = (len(POSITIONS), num_heads, num_keys, width)
    qkv = torch.randn(len(POSITIONS), 3, num_heads, width, generator=generator).to(dtype)
    keys, values = (torch.randn(size, generator=generator).to(dtype) for _ in range(2))
    return qkv, keys, values


def by_numpy(qkv, keys, values, band):
    """Attention in float64, a row and a head at a time."""
    qkv, keys, values = (tensor.double().numpy() for tensor in (qkv, keys, values))
    mixed = np.zeros(qkv[:, 0].shape)
    for row, last in enumerate(POSITIONS.tolist()):
        first = max(0, last - band + 1)
        for head in range(qkv.shape[2]):
            own_keys = np.concatenate([keys[row, head, first:last], qkv[row, 1, head][None]])
            own_values = np.concatenate([values[row, head, first:last], qkv[row, 2, head][None]])
            scores = own_keys @ qkv[row, 0, head] / math.sqrt(qkv.shape[-1])
            weights = np.exp(scores - scores.max())
            mixed[row, head] = weights @ own_values / weights.sum()
    return mixed


@pytest.mark.parametrize("band", [None, 1, 9, 64])
@pytest.mark.parametrize("width", [16, 64, 80, 128])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_mixed_values_are_those_of_float64(dtype, error, width, band):
    qkv, keys, values = example(dtype, width)
    expected = by_numpy(qkv, keys, values, band or 1000)
    found = attention(dtype, width)(qkv, keys, values, POSITIONS, band)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.double().numpy(), expected, atol=error, rtol=0)


def test_keys_and_values_are_stored_at_the_rows_positions_and_nowhere_else():
    qkv, keys, values = example(torch.bfloat16, 64)
    expected = keys.clone(), values.clone()
    for part, stored in enumerate(expected, start=1):
        stored[torch.arange(len(POSITIONS)), :, POSITIONS] = qkv[:, part]
    attention(torch.bfloat16, 64)(qkv, keys, values, POSITIONS, None)
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_depend_neither_on_other_rows_nor_on_memory_past_the_position_nor_on_threads(dtype):
    qkv, keys, values = example(dtype, 64)
    attend = attention(dtype, 64)
    together = attend(qkv, keys.clone(), values.clone(), POSITIONS, None)
    wider_keys, wider_values = (torch.cat([part, torch.full_like(part, torch.nan)], 2) for part in (keys, values))
    threads = torch.get_num_threads()
    try:
        for torch_threads in (1, 3):
            torch.set_num_threads(torch_threads)
            assert torch.equal(attend(qkv, wider_keys.clone(), wider_values.clone(), POSITIONS, None), together)
            for row in range(len(POSITIONS)):
                own = slice(row, row + 1)
                alone = attend(qkv[own], keys[own].clone(), values[own].clone(), POSITIONS[own], None)
                assert torch.equal(alone, together[own])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_far_apart_lose_nothing_and_damage_shows(dtype):
    qkv, keys, values = example(dtype, 16, num_keys=64)
    qkv[:, 0] *= 100
    found = attention(dtype, 16)(qkv, keys.clone(), values, POSITIONS, None)
    np.testing.assert_allclose(found.double().numpy(), by_numpy(qkv, keys, values, 1000), atol=2e-2, rtol=0)
    keys[2, 0, 3] = torch.nan
    found = attention(dtype, 16)(qkv, keys, values, POSITIONS, None)
    assert found[2, 0].isnan().all()
    assert not found[[0, 1, 3, 4, 5, 6]].isnan().any()


def test_without_a_compiler_products_do_the_work(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    attention_for.cache_clear()
    try:
        kinds = decode_attention.attention_kinds(torch.device("cpu"), torch.float32, 32)
    finally:
        attention_for.cache_clear()
    assert kinds == ("products", "fused")


def test_wrong_results_of_a_compiler_are_not_used_and_told_of(monkeypatch, caplog):
    def attend(*_: object) -> None:
        """Write nothing, as a function compiled wrong might."""

    monkeypatch.setattr(native_attention, "_attend", lambda *_: attend)
    assert attention_for.__wrapped__(torch.float32, 32) is None
    assert "attention is slower than it could be, its C++ was compiled wrong" in caplog.text


def test_a_compiler_that_fails_is_told_of(monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise subprocess.CalledProcessError(1, ["c++"])

    monkeypatch.setattr(native_attention, "_attend", fail)
    assert attention_for.__wrapped__(torch.float32, 32) is None
    assert "attention is slower than it could be" in caplog.text
