"""Products of one constant number of rows, for libraries that choose their kernel by it.

A GPU's library adds in another order for 8 rows than for 256, and takes hardly longer for 256: it waits for the
weights. Every product of the decoder there has this one shape, so that a row's bits follow from the row, for
decode steps of any number of sequences and for prompts alike.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GPU_BLOCK_ROWS = 256


def in_blocks(function: Callable[[Tensor], Tensor], num_rows: int) -> Callable[[Tensor], Tensor]:
    """Return a function of rows that calls this one with exactly ``num_rows`` of them, as often as that takes.

    Rows of zeros fill the last block; what is computed of them is cut off.
    """

    def apply(x_MI: Tensor) -> Tensor:
        count = len(x_MI)
        if count == num_rows:
            return function(x_MI)
        blocks = F.pad(x_MI, (0, 0, 0, -count % num_rows)).split(num_rows)
        return (function(blocks[0]) if len(blocks) == 1 else torch.cat([function(block) for block in blocks]))[:count]

    return apply
