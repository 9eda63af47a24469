"""Attention of one new position a sequence over its cached keys, in three ways.

``self_check`` tries on each machine which of them gives a row the same bits in any company.

Shapes: R rows (one a sequence), S slots of a block of the cache, H heads, L keys, D head width.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt_core.generation.native_attention import NativeAttention, native_attention

AttentionKind = Literal["native", "products", "fused"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of a step lie in a block of the cache, and what they see there."""

    places: slice
    """Of the block."""
    place_ids: Tensor
    positions: Tensor
    num_keys: int
    masks: Mapping[int | None, Tensor]
    """Additive, [R, 1, L], of dense layers (key None) and banded ones (key the band); native attention needs none."""


Attention = Callable[[Tensor, Tensor, Tensor, Rows, int | None], Tensor]
"""(qkv_R3HD, keys_SHLD, values_SHLD, rows, band) -> mixed_RHD, once the rows' keys and values are stored."""
_Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def product_attention(q_RHD: Tensor, keys_RHLD: Tensor, values_RHLD: Tensor, mask_R11L: Tensor) -> Tensor:
    """Return mixed_RHD by two batched products with an fp32 softmax between them; the mask is added.

    On CPUs faster than the fused kernel for a single query: 16 rows, 12 heads of 64, 96 keys, 48 layers take 22.9 ms
    in bf16 and 24.6 in fp32, fused 69.0 and 35.1 (Zen 5, one thread, 2026-11-28). There the fused fp32 kernel also
    gives other bits to the rows that its second thread computes, whose scratch memory lies at odd addresses.
    """
    scores_RH1L = (q_RHD[:, :, None] @ keys_RHLD.transpose(-1, -2)).float()
    scores_RH1L = scores_RH1L.mul_(1 / math.sqrt(q_RHD.shape[-1])).add_(mask_R11L)
    return (scores_RH1L.softmax(-1).to(values_RHLD.dtype) @ values_RHLD)[:, :, 0]


def fused_attention(q_RHD: Tensor, keys_RHLD: Tensor, values_RHLD: Tensor, mask_R11L: Tensor) -> Tensor:
    """Return the same by PyTorch's own kernel; the mask is of the queries' dtype."""
    return masked_attention(q_RHD[:, :, None], keys_RHLD, values_RHLD, mask_R11L)[:, :, 0]


def masked_attention(q_BHTD: Tensor, keys_BHLD: Tensor, values_BHLD: Tensor, mask: Tensor) -> Tensor:
    """Return mixed_BHTD by PyTorch's own kernel.

    On a GPU by the one that takes masks and computes each sequence by itself: cuDNN, which comes first on newer ones,
    makes ready a plan for every number of keys and chooses it by the number of sequences.
    """
    if q_BHTD.device.type != "cuda":
        return F.scaled_dot_product_attention(q_BHTD, keys_BHLD, values_BHLD, attn_mask=mask)
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return F.scaled_dot_product_attention(q_BHTD, keys_BHLD, values_BHLD, attn_mask=mask)


def attention_of(kind: AttentionKind, dtype: torch.dtype, head_width: int) -> Attention:
    """Return one of the three, for a cache of such values."""
    if kind == "native":
        native = native_attention(dtype, head_width)
        assert native is not None
        return _natively(native)
    return _stored_first(product_attention if kind == "products" else fused_attention)


def attention_kinds(device: torch.device, dtype: torch.dtype, head_width: int) -> tuple[AttentionKind, ...]:
    """Return those that work on such a device, the fastest first."""
    if device.type != "cpu":
        return ("fused", "products")
    return ("products", "fused") if native_attention(dtype, head_width) is None else ("native", "products", "fused")


def _natively(native: NativeAttention) -> Attention:
    def attention(qkv_R3HD: Tensor, keys_SHLD: Tensor, values_SHLD: Tensor, rows: Rows, band: int | None) -> Tensor:
        return native(qkv_R3HD, keys_SHLD[rows.places], values_SHLD[rows.places], rows.positions, band)

    return attention


def _stored_first(attend: _Attend) -> Attention:
    def attention(qkv_R3HD: Tensor, keys_SHLD: Tensor, values_SHLD: Tensor, rows: Rows, band: int | None) -> Tensor:
        q_RHD, k_RHD, v_RHD = qkv_R3HD.unbind(1)
        keys_SHLD[rows.place_ids, :, rows.positions] = k_RHD
        values_SHLD[rows.place_ids, :, rows.positions] = v_RHD
        keys_RHLD, values_RHLD = (stored[rows.places, :, : rows.num_keys] for stored in (keys_SHLD, values_SHLD))
        return attend(q_RHD, keys_RHLD, values_RHLD, rows.masks[band][:, None])

    return attention
