"""Keys and values of every layer for a fixed number of slots, one sequence a slot.

Written and read by the decoder, copied by the engine. Invariant: every value is finite from
the start, so that a masked position contributes exactly zero.

Shapes: N layers, S slots, H heads, L positions, D head width.
"""

import numpy as np
import torch
from torch import Tensor

from gpt_core.presets import ModelShape

KEY_STEP = 64
"""Numbers of keys attended to are multiples of this: fewer shapes, and the bits of a row do
not change with the padding (seen for multiples of 16; checked when an engine loads)."""

CACHE_LINE_BYTES = 64


class KVCache:
    """Two tensors [N, S, H, L, D]; memory is ``num_bytes``, on a CPU committed as it is first written."""

    def __init__(
        self, shape: ModelShape, num_slots: int, num_positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_slots = num_slots
        self.num_positions = round_up(num_positions, KEY_STEP)
        size = (shape.n_layer, num_slots, shape.n_head, self.num_positions, shape.head_width)
        self.keys_NSHLD = _zeros(size, dtype, device)
        self.values_NSHLD = _zeros(size, dtype, device)

    @property
    def num_bytes(self) -> int:
        """The size of both tensors, whether committed or not."""
        return 2 * self.keys_NSHLD.numel() * self.keys_NSHLD.element_size()

    def copy_prefix(self, source_slot: int, target_slot: int, num_tokens: int) -> None:
        """Copy the first ``num_tokens`` positions of every layer from one slot to another."""
        for tensor in (self.keys_NSHLD, self.values_NSHLD):
            tensor[:, target_slot, :, :num_tokens] = tensor[:, source_slot, :, :num_tokens]


def round_up(number: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is not below ``number``."""
    return -(-number // step) * step


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros whose pages the system hands out at first touch: most slots never grow to the whole context."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = int(np.prod(size)) * dtype.itemsize
    memory = np.zeros(num_bytes + CACHE_LINE_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % CACHE_LINE_BYTES
    return torch.from_numpy(memory[start : start + num_bytes]).view(dtype).view(size)
