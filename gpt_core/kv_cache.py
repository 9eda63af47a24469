"""Keys and values of every layer for a fixed number of slots, one sequence a slot.

Written and read by the decoder, copied by the engine. Invariant: every value is finite from
the start, so that a masked position contributes exactly zero.

Shapes: S slots, H heads, L positions, D head width.
"""

import torch

from gpt_core.presets import ModelShape

KEY_STEP = 64
"""Numbers of keys attended to are multiples of this: fewer shapes, and the bits of a row do
not change with the padding (seen for multiples of 16; checked when an engine loads)."""


class KVCache:
    """Two tensors [S, H, L, D] a layer. L grows as sequences do, so short ones never pay for the whole window.

    Args:
        shape: The model's sizes.
        num_slots: S.
        max_positions: What L may grow to; rounded up to a multiple of KEY_STEP.
        dtype: Of keys and values.
        device: Where they are.
    """

    def __init__(
        self, shape: ModelShape, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_slots = num_slots
        self.max_positions = round_up(max_positions, KEY_STEP)
        size = (num_slots, shape.n_head, KEY_STEP, shape.head_width)
        self.keys = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.n_layer)]
        self.values = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.n_layer)]

    @property
    def num_positions(self) -> int:
        """The positions there is memory for at present."""
        return self.keys[0].shape[2]

    @property
    def num_bytes(self) -> int:
        """The memory held at present."""
        return 2 * len(self.keys) * self.keys[0].numel() * self.keys[0].element_size()

    @torch.inference_mode()
    def reserve(self, num_positions: int) -> None:
        """Make room for ``num_positions``, keeping what is stored; at least doubles, up to the limit."""
        if num_positions <= self.num_positions:
            return
        assert num_positions <= self.max_positions
        grown = max(round_up(num_positions, KEY_STEP), min(2 * self.num_positions, self.max_positions))
        for tensors in (self.keys, self.values):
            for index, old_SHLD in enumerate(tensors):
                num_slots, num_heads, num_old, head_width = old_SHLD.shape
                new_SHLD = old_SHLD.new_zeros(num_slots, num_heads, grown, head_width)
                new_SHLD[:, :, :num_old] = old_SHLD
                tensors[index] = new_SHLD

    @torch.inference_mode()
    def copy_prefix(self, source_slot: int, target_slot: int, num_tokens: int) -> None:
        """Copy the first ``num_tokens`` positions of every layer from one slot to another."""
        for tensor_SHLD in (*self.keys, *self.values):
            tensor_SHLD[target_slot, :, :num_tokens] = tensor_SHLD[source_slot, :, :num_tokens]


def round_up(number: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is not below ``number``."""
    return -(-number // step) * step
