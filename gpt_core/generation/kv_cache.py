"""Keys and values of every layer for a fixed number of slots, one sequence a slot.

Written and read by the decoder, copied by the engine. Invariant: every value is finite from
the start, so that a masked position contributes exactly zero.

Shapes: S slots, H heads, L positions, D head width.
"""

import torch

from gpt_core.model.presets import ModelShape

KEY_STEPS = (16, 64)
"""Numbers of keys attended to are multiples of one of these: the bits of a row then do not change with the padding
(seen for multiples of 16; checked when an engine loads, which takes the first that holds)."""
GROWTH_POSITIONS = 64
"""Memory is taken for multiples of this."""
BLOCK_SLOTS = 16
"""Slots that grow together. One long sequence costs its own block memory and time, not all slots."""


class CacheBlock:
    """Two tensors [S, H, L, D] a layer. L follows the sequences, so short ones never pay for the whole window.

    Args:
        shape: The model's sizes.
        slots: The slots of the cache that are this block's rows.
        max_positions: What L may grow to, a multiple of GROWTH_POSITIONS.
        dtype: Of keys and values.
        device: Where they are.
    """

    def __init__(
        self, shape: ModelShape, slots: range, max_positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.slots = slots
        self._max_positions = max_positions
        self.num_moves = 0
        """How often the tensors have been replaced by others."""
        size = (len(slots), shape.n_head, GROWTH_POSITIONS, shape.head_width)
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
        """Make room for ``num_positions``, keeping what is stored."""
        if num_positions > self.num_positions:
            assert num_positions <= self._max_positions
            self._resize(round_up(num_positions, GROWTH_POSITIONS))

    @torch.inference_mode()
    def trim(self, num_positions: int) -> None:
        """Give memory back where no more than half of it is for the first ``num_positions``, which are kept."""
        kept = max(round_up(num_positions, GROWTH_POSITIONS), GROWTH_POSITIONS)
        if 2 * kept <= self.num_positions:
            self._resize(kept)

    def _resize(self, num_positions: int) -> None:
        self.num_moves += 1
        for tensors in (self.keys, self.values):
            for index, old_SHLD in enumerate(tensors):
                num_slots, num_heads, num_old, head_width = old_SHLD.shape
                new_SHLD = old_SHLD.new_zeros(num_slots, num_heads, num_positions, head_width)
                num_kept = min(num_old, num_positions)
                new_SHLD[:, :, :num_kept] = old_SHLD[:, :, :num_kept]
                tensors[index] = new_SHLD


class KVCache:
    """The keys and values of all slots, on a CPU in blocks of BLOCK_SLOTS that grow each by itself.

    Args:
        shape: The model's sizes.
        num_slots: How many sequences it holds.
        max_positions: Positions a sequence can take; rounded up to a multiple of GROWTH_POSITIONS.
        dtype: Of keys and values.
        device: Where they are.
    """

    def __init__(
        self, shape: ModelShape, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_slots = num_slots
        self.max_positions = round_up(max_positions, GROWTH_POSITIONS)
        # A GPU computes all slots at once; more blocks would be more launches.
        self._block_slots = BLOCK_SLOTS if device.type == "cpu" else num_slots
        self.blocks = [
            CacheBlock(
                shape, range(start, min(start + self._block_slots, num_slots)), self.max_positions, dtype, device
            )
            for start in range(0, num_slots, self._block_slots)
        ]

    @property
    def num_bytes(self) -> int:
        """The memory held at present."""
        return sum(block.num_bytes for block in self.blocks)

    def block_of(self, slot: int) -> tuple[CacheBlock, int]:
        """Return the block that holds a slot, and the slot's row in it."""
        return self.blocks[slot // self._block_slots], slot % self._block_slots

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Make a slot's values finite again, for one whose sequence computed others."""
        block, row = self.block_of(slot)
        for tensor_SHLD in (*block.keys, *block.values):
            tensor_SHLD[row].zero_()

    @torch.inference_mode()
    def copy_prefix(self, source_slot: int, target_slot: int, num_tokens: int) -> None:
        """Copy the first ``num_tokens`` positions of every layer from one slot to another."""
        source, source_row = self.block_of(source_slot)
        target, target_row = self.block_of(target_slot)
        target.reserve(num_tokens)
        for old_SHLD, new_SHLD in zip((*source.keys, *source.values), (*target.keys, *target.values), strict=True):
            new_SHLD[target_row, :, :num_tokens] = old_SHLD[source_row, :, :num_tokens]


def round_up(number: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is not below ``number``."""
    return -(-number // step) * step
