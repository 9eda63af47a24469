"""Promises of gpt_core.training.reduction."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.training import reduction
from gpt_core.training.reduction import TreeSum, gather_parts, part_of, scatter_sum, sum_over_ranks
from tests.unit.gloo_ranks import run_on_ranks


def tree_sum_by_definition(leaves):
    """The balanced binary tree, written as its recursion."""
    if len(leaves) == 1:
        return leaves[0]
    half = len(leaves) // 2
    return tree_sum_by_definition(leaves[:half]) + tree_sum_by_definition(leaves[half:])


def make_leaves(count, num_elements, seed=0):
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.integers(-4, 5, (count, num_elements))
    return (generator.standard_normal((count, num_elements)) * scale).astype(np.float32)


def add_all(leaves):
    total = TreeSum(lambda: torch.zeros(leaves.shape[1]), lambda buffer: [buffer[:3], buffer[3:]])
    for leaf in torch.from_numpy(leaves):
        total.add([leaf[:3], leaf[3:]])
    return total.take().clone()


@given(st.integers(0, 6), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_a_rank_adds_its_leaves_as_the_balanced_tree_does(levels, seed):
    leaves = make_leaves(2**levels, 7, seed)
    np.testing.assert_array_equal(add_all(leaves).numpy(), tree_sum_by_definition(list(leaves)))


def test_a_sum_can_be_taken_again_and_again_from_the_same_buffers():
    total = TreeSum(lambda: torch.zeros(4), lambda buffer: [buffer])
    for _ in range(3):
        for value in range(1, 6):
            total.add([torch.full((4,), float(value))])
        assert total.take().tolist() == [15.0] * 4
    assert len(total._free) <= 4


def test_bf16_contributions_are_added_in_fp32():
    total = TreeSum(lambda: torch.zeros(1), lambda buffer: [buffer])
    total.add([torch.tensor([256.0], dtype=torch.bfloat16)])
    total.add([torch.tensor([1.0], dtype=torch.bfloat16)])
    assert total.take().item() == 257.0


def reduce_leaf(ranks, leaves, bucket_elements):
    """Sum this rank's aligned slice of the leaves, then over the ranks."""
    reduction.BUCKET_ELEMENTS = bucket_elements
    share = len(leaves) // ranks.num_ranks
    buffer = add_all(leaves[ranks.rank * share : (ranks.rank + 1) * share])
    sum_over_ranks(buffer, ranks, "exact")
    return buffer.numpy()


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("bucket_elements", [1000, 8, 3])
def test_ranks_together_add_as_one_process_does_and_all_end_with_the_same_bits(tmp_path, num_ranks, bucket_elements):
    leaves = make_leaves(8, 23)
    expected = tree_sum_by_definition(list(leaves))
    for found in run_on_ranks(num_ranks, tmp_path, reduce_leaf, leaves, bucket_elements):
        np.testing.assert_array_equal(found, expected)


CUTS = {3: [0, 5, 5, 23], 4: [0, 3, 3, 20, 23]}


def scatter_and_gather(ranks, leaves, mode):
    """Return this rank's part of the sum and where it begins, and the sum gathered from all parts."""
    reduction.BUCKET_ELEMENTS = 4
    buffer = torch.from_numpy(leaves[ranks.rank].copy())
    cuts = CUTS[ranks.num_ranks]
    part = scatter_sum(buffer, cuts, ranks, mode).clone()
    gather_parts(buffer, cuts, ranks, mode)
    return part.numpy(), cuts[part_of(ranks.rank, ranks.num_ranks, mode)], buffer.numpy()


@pytest.mark.parametrize(("num_ranks", "mode"), [(4, "exact"), (3, "fast")])
def test_each_rank_ends_with_another_part_of_the_sum_however_it_is_cut(tmp_path, num_ranks, mode):
    leaves = make_leaves(num_ranks, 23) if mode == "exact" else np.ones((num_ranks, 23), np.float32)
    expected = tree_sum_by_definition(list(leaves)) if mode == "exact" else leaves.sum(0)
    found = run_on_ranks(num_ranks, tmp_path, scatter_and_gather, leaves, mode)
    for part, start, whole in found:
        np.testing.assert_array_equal(part, expected[start : start + len(part)])
        np.testing.assert_array_equal(whole, expected)
    assert sorted(len(part) for part, _, _ in found) == sorted(np.diff(CUTS[num_ranks]))
