"""Promises of gpt_core.kv_cache."""

import torch

from gpt_core.kv_cache import KVCache, round_up
from gpt_core.presets import ModelShape

SHAPE = ModelShape(2, 2, 8, 100, 50)


def test_a_cache_starts_finite_and_holds_whole_key_steps():
    cache = KVCache(SHAPE, 3, 100, torch.bfloat16, torch.device("cpu"))
    assert cache.num_positions == 128
    assert cache.keys_NSHLD.shape == (2, 3, 2, 128, 4)
    assert not cache.keys_NSHLD.any()
    assert not cache.values_NSHLD.any()
    assert cache.num_bytes == 2 * 2 * 3 * 2 * 128 * 4 * 2


def test_copying_a_prefix_changes_nothing_but_that_prefix_of_that_slot():
    cache = KVCache(SHAPE, 3, 100, torch.float32, torch.device("cpu"))
    cache.keys_NSHLD.normal_()
    cache.values_NSHLD.normal_()
    before = cache.keys_NSHLD.clone(), cache.values_NSHLD.clone()
    cache.copy_prefix(2, 0, 37)
    for tensor, old in zip((cache.keys_NSHLD, cache.values_NSHLD), before, strict=True):
        assert torch.equal(tensor[:, 0, :, :37], old[:, 2, :, :37])
        assert torch.equal(tensor[:, 0, :, 37:], old[:, 0, :, 37:])
        assert torch.equal(tensor[:, 1:], old[:, 1:])


def test_rounding_up_keeps_multiples():
    assert [round_up(n, 64) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]
