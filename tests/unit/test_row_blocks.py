"""Promises of generation.row_blocks: every call has one number of rows, and no row is lost or added."""

import pytest
import torch

from gpt_core.generation.row_blocks import in_blocks


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_rows_are_computed_in_blocks_of_one_size(count):
    seen = []

    def twice(x):
        seen.append(len(x))
        return 2 * x

    x = torch.randn(count, 3)
    assert torch.equal(in_blocks(twice, 4)(x), 2 * x)
    assert seen == [4] * -(-count // 4)
