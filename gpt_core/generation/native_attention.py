"""Attention of decode steps in C++.

PyTorch's products read the cache at a third of the rate that memory allows, and all of it that there is memory for:
64 rows of GPT-2, 12 layers, take 13.6 ms at 64 positions in bf16 and 23.7 at 128, these 4.3 at 41 and 7.0 at 71
(Zen 5, one thread, 2026-11-28). Where there is no compiler the products do the work.

Shapes: R rows (one a sequence), S slots, H heads, L positions there is memory for, D head width.
"""

import ctypes
import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from gpt_core.generation.native_code import LANES, CompileError, compiled, in_parts

_log = logging.getLogger(__name__)
_ELEMENTS = {torch.bfloat16: "uint16_t", torch.float32: "float"}
_NO_BAND = 1 << 62

NativeAttention = Callable[[Tensor, Tensor, Tensor, Tensor, int | None], Tensor]
"""(qkv_R3HD, keys_RHLD, values_RHLD, positions_R, band) -> mixed_RHD; all contiguous, on the CPU. Stores the rows' keys
and values at their positions and attends to those up to there, no more than ``band`` of them."""


@functools.cache
def native_attention(dtype: torch.dtype, head_width: int) -> NativeAttention | None:
    """Return attention for such a cache, None where it cannot be compiled here or its results are wrong."""
    if dtype not in _ELEMENTS or head_width % LANES:
        return None
    try:
        attend = _attend(dtype, head_width)
    except CompileError as error:
        _log.warning("generation: attention is slower than it could be, its C++ was not compiled: %s", error)
        return None

    def attention(
        qkv_R3HD: Tensor, keys_RHLD: Tensor, values_RHLD: Tensor, positions_R: Tensor, band: int | None
    ) -> Tensor:
        num_rows, _, num_heads, _ = qkv_R3HD.shape
        mixed_RHD = qkv_R3HD.new_empty(num_rows, num_heads, head_width)
        tensors = (qkv_R3HD, keys_RHLD, values_RHLD, mixed_RHD, positions_R)
        # Handed over as addresses: nothing behind them looks at sizes and types again.
        assert all(tensor.is_contiguous() for tensor in tensors)
        assert qkv_R3HD.dtype == keys_RHLD.dtype == values_RHLD.dtype == dtype
        assert positions_R.dtype == torch.int64
        assert keys_RHLD.shape == values_RHLD.shape == (num_rows, num_heads, keys_RHLD.shape[2], head_width)

        def attend_rows(rows: slice) -> None:
            addresses = [tensor[rows].data_ptr() for tensor in tensors]
            attend(*addresses, len(mixed_RHD[rows]), num_heads, keys_RHLD.shape[2], band or _NO_BAND)

        in_parts(num_rows, attend_rows)
        return mixed_RHD

    if _is_right(attention, dtype, head_width):
        return attention
    _log.warning("generation: attention is slower than it could be, its C++ was compiled wrong; set CXX to another")
    return None


def _attend(dtype: torch.dtype, head_width: int) -> Callable[..., None]:
    attend = compiled("attention.cpp", ELEMENT=_ELEMENTS[dtype], HEAD_WIDTH=head_width).attend
    attend.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 4
    attend.restype = None
    return attend


def _is_right(attention: NativeAttention, dtype: torch.dtype, head_width: int) -> bool:
    """Compare with attention in fp64, so that a compiler's mistake costs speed and no more."""
    generator = torch.Generator().manual_seed(0)
    positions_R, num_heads, num_keys, band = torch.tensor([0, 5, 16, 40]), 2, 64, 9
    size = (len(positions_R), num_heads, num_keys, head_width)
    qkv_R3HD = torch.randn(size[0], 3, num_heads, head_width, generator=generator).to(dtype)
    keys_RHLD, values_RHLD = (torch.randn(size, generator=generator).to(dtype) for _ in range(2))
    found_RHD = attention(qkv_R3HD, keys_RHLD, values_RHLD, positions_R, band)
    distance_RL = positions_R[:, None] - torch.arange(num_keys)
    is_seen_R1L = ((distance_RL >= 0) & (distance_RL < band))[:, None]
    scores_RHL = torch.einsum("rhd,rhld->rhl", qkv_R3HD[:, 0].double(), keys_RHLD.double()) / head_width**0.5
    weights_RHL = scores_RHL.masked_fill(~is_seen_R1L, -torch.inf).softmax(-1)
    expected_RHD = torch.einsum("rhl,rhld->rhd", weights_RHL, values_RHLD.double())
    return torch.allclose(found_RHD.double(), expected_RHD, rtol=1e-2, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)
