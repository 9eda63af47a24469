"""Promises of gpt_core.generation.kv_cache."""

import torch

from gpt_core.generation.kv_cache import BLOCK_SLOTS, CacheBlock, KVCache, round_up
from gpt_core.model.presets import ModelShape

SHAPE = ModelShape(2, 2, 8, 300, 50)
CPU = torch.device("cpu")


def make_block():
    return CacheBlock(SHAPE, range(3), 320, torch.float32, CPU)


def make_cache():
    return KVCache(SHAPE, BLOCK_SLOTS + 2, 300, torch.float32, CPU)


def tensors_of(*blocks):
    return [tensor for block in blocks for tensor in (*block.keys, *block.values)]


@torch.inference_mode()
def fill(*blocks):
    for tensor in tensors_of(*blocks):
        tensor.normal_()
    return [tensor.clone() for tensor in tensors_of(*blocks)]


def test_a_block_starts_at_zero_with_one_step_of_positions():
    block = make_block()
    assert len(block.keys) == len(block.values) == 2
    assert all(tensor.shape == (3, 2, 64, 4) for tensor in tensors_of(block))
    assert not any(tensor.any() for tensor in tensors_of(block))
    assert block.num_bytes == 2 * 2 * 3 * 2 * 64 * 4 * 4


def test_growing_keeps_what_is_stored_and_adds_zeros():
    block = make_block()
    before = fill(block)
    block.reserve(65)
    assert block.num_positions == 128
    for tensor, old in zip(tensors_of(block), before, strict=True):
        assert torch.equal(tensor[:, :, :64], old)
        assert not tensor[:, :, 64:].any()


def test_a_block_grows_by_whole_steps_and_gives_back_what_is_more_than_half_unused():
    block = make_block()
    sizes = []
    for wanted in (64, 65, 129, 257, 320):
        block.reserve(wanted)
        sizes.append(block.num_positions)
    assert sizes == [64, 128, 192, 320, 320]
    before = fill(block)
    for needed, size in ((161, 320), (160, 320), (128, 128), (0, 64)):
        block.trim(needed)
        assert block.num_positions == size
    for tensor, old in zip(tensors_of(block), before, strict=True):
        assert torch.equal(tensor, old[:, :, :64])


def test_blocks_hold_every_slot_once_and_grow_each_by_itself():
    cache = make_cache()
    assert [list(block.slots) for block in cache.blocks] == [list(range(BLOCK_SLOTS)), [BLOCK_SLOTS, BLOCK_SLOTS + 1]]
    for slot in range(cache.num_slots):
        block, row = cache.block_of(slot)
        assert block.slots[row] == slot
    cache.blocks[1].reserve(300)
    assert [block.num_positions for block in cache.blocks] == [64, 300 + 20]
    assert cache.num_bytes == sum(block.num_bytes for block in cache.blocks)


def test_copying_a_prefix_changes_nothing_but_that_prefix_of_that_slot():
    cache = make_cache()
    source, target = cache.blocks
    source.reserve(128)
    before = fill(source, target)
    cache.copy_prefix(2, BLOCK_SLOTS, 70)
    assert target.num_positions == 128
    old_source, old_target = before[:4], before[4:]
    for old, new in zip(old_source, tensors_of(source), strict=True):
        assert torch.equal(old, new)
    for copied, old, new in zip(old_source, old_target, tensors_of(target), strict=True):
        assert torch.equal(new[0, :, :70], copied[2, :, :70])
        assert not new[0, :, 70:].any()
        assert torch.equal(new[1, :, :64], old[1])


def test_clearing_a_slot_changes_no_other():
    cache = make_cache()
    before = fill(*cache.blocks)
    cache.clear(1)
    for old, new in zip(before[:4], tensors_of(cache.blocks[0]), strict=True):
        assert not new[1].any()
        assert torch.equal(new[0], old[0])
        assert torch.equal(new[2:], old[2:])


def test_rounding_up_keeps_multiples():
    assert [round_up(n, 64) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]
