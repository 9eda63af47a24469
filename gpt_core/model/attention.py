"""Causal attention, by the library's fused kernel or in blocks of rows, whichever was measured to be faster.

Shapes: B sequences, T positions, H heads, D head width; G = B * H, R rows of a block and S positions they see.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Small enough that the triangle of a block's unseen positions is small, too: of 128, 256 and 512 rows 256 were
# fastest at T = 1024, 47, 37 and 36 ms in bf16, 80, 81 and 93 in fp32 (one core, EPYC with AVX512-BF16, 2026-11-28).
BLOCK_ROWS = 256


def causal_attention(
    q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, *, band: int | None = None, dropout: float = 0.0
) -> Tensor:
    """Return what each position sees of itself and those before it, [B, H, T, D] in the dtype of v.

    The same bits each time on the same number of threads; dropout draws from torch's generator.

    Args:
        q_BHTD: Queries.
        k_BHTD: Keys.
        v_BHTD: Values.
        band: Positions seen, itself included; None = all.
        dropout: Share of the probabilities set to 0.
    """
    num_positions = q_BHTD.shape[-2]
    if band is not None and band >= num_positions:
        band = None
    if _is_faster_in_blocks(q_BHTD, band, dropout):
        return blocked_attention(q_BHTD, k_BHTD, v_BHTD, band=band, dropout=dropout)
    if band is None:
        return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, dropout_p=dropout, is_causal=True)
    mask_TT = band_mask(num_positions, band, q_BHTD.device)
    return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, attn_mask=mask_TT, dropout_p=dropout)


def _is_faster_in_blocks(q_BHTD: Tensor, band: int | None, dropout: float) -> bool:
    """Say what was measured, in ms of one core forward and backward, EPYC with AVX512-BF16, 2026-11-28.

    bf16: 12 heads of 64 x 1024 fused 69, blocks 37, compiled 34; 48 heads of 32 x 64 fused 5.3, blocks 1.0. fp32:
    fused 89, blocks 81, and 1.4 both; the fused kernel keeps no probabilities. It knows neither bands nor dropout on
    a CPU.
    """
    return q_BHTD.device.type == "cpu" and (band is not None or dropout > 0.0 or q_BHTD.dtype == torch.bfloat16)


def blocked_attention(
    q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, *, band: int | None = None, dropout: float = 0.0
) -> Tensor:
    """Return the same as ``causal_attention``: for each block of rows two products and a softmax between them.

    A block reads only the positions its rows see, so that a band of W costs T (R + W) and not T^2. Scale and mask
    are part of the product; the softmax computes in fp32 whatever the type of the scores.
    """
    num_positions = q_BHTD.shape[-2]
    scale = 1.0 / math.sqrt(q_BHTD.shape[-1])
    q_GTD, k_GTD, v_GTD = (x.flatten(0, 1) for x in (q_BHTD, k_BHTD, v_BHTD))
    blocks = []
    for start in range(0, num_positions, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, num_positions)
        first = 0 if band is None else max(0, start - band + 1)
        unseen_RS = _unseen(start, stop, first, band, q_BHTD.device)
        bias_RS = torch.zeros_like(unseen_RS, dtype=q_BHTD.dtype).masked_fill_(unseen_RS, -math.inf)
        shares_GRS = torch.baddbmm(bias_RS, q_GTD[:, start:stop], k_GTD[:, first:stop].mT, alpha=scale).softmax(-1)
        shares_GRS = F.dropout(shares_GRS, dropout) if dropout else shares_GRS
        blocks.append(shares_GRS @ v_GTD[:, first:stop])
    return torch.cat(blocks, -2).view(v_BHTD.shape)


def band_mask(num_positions: int, band: int, device: torch.device) -> Tensor:
    """Return a bool [T, T] mask, True where position i sees j: i - band < j <= i."""
    return ~_unseen(0, num_positions, 0, band, device)


def _unseen(start: int, stop: int, first: int, band: int | None, device: torch.device) -> Tensor:
    """Return a bool [R, S] mask of positions from ``first`` to ``stop`` that rows from ``start`` on do not see."""
    rows_R1 = torch.arange(start, stop, device=device)[:, None]
    positions_S = torch.arange(first, stop, device=device)
    unseen_RS = positions_S > rows_R1
    return unseen_RS if band is None else unseen_RS | (positions_S <= rows_R1 - band)
