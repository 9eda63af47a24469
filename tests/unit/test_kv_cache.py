"""Promises of gpt_core.kv_cache."""

import torch

from gpt_core.kv_cache import KVCache, round_up
from gpt_core.presets import ModelShape

SHAPE = ModelShape(2, 2, 8, 300, 50)


def make_cache():
    return KVCache(SHAPE, 3, 300, torch.float32, torch.device("cpu"))


def fill(cache):
    for tensor in (*cache.keys, *cache.values):
        tensor.normal_()
    return [tensor.clone() for tensor in (*cache.keys, *cache.values)]


def test_a_cache_starts_at_zero_with_one_step_of_positions():
    cache = make_cache()
    assert len(cache.keys) == len(cache.values) == 2
    assert all(tensor.shape == (3, 2, 64, 4) for tensor in (*cache.keys, *cache.values))
    assert not any(tensor.any() for tensor in (*cache.keys, *cache.values))
    assert cache.num_bytes == 2 * 2 * 3 * 2 * 64 * 4 * 4


def test_growing_keeps_what_is_stored_and_adds_zeros():
    cache = make_cache()
    before = fill(cache)
    cache.reserve(65)
    assert cache.num_positions == 128
    for tensor, old in zip((*cache.keys, *cache.values), before, strict=True):
        assert torch.equal(tensor[:, :, :64], old)
        assert not tensor[:, :, 64:].any()


def test_growing_doubles_up_to_the_limit():
    cache = make_cache()
    sizes = []
    for wanted in (64, 65, 129, 257, 320):
        cache.reserve(wanted)
        sizes.append(cache.num_positions)
    assert sizes == [64, 128, 256, 320, 320]


def test_copying_a_prefix_changes_nothing_but_that_prefix_of_that_slot():
    cache = make_cache()
    before = fill(cache)
    cache.copy_prefix(2, 0, 37)
    for tensor, old in zip((*cache.keys, *cache.values), before, strict=True):
        assert torch.equal(tensor[0, :, :37], old[2, :, :37])
        assert torch.equal(tensor[0, :, 37:], old[0, :, 37:])
        assert torch.equal(tensor[1:], old[1:])


def test_rounding_up_keeps_multiples():
    assert [round_up(n, 64) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]
