"""Causal attention, by the library's fused kernel or in blocks of rows, whichever was measured to be faster.

Shapes: B sequences, T positions, H heads, D head width; R rows of a block and S positions they see.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Small enough that the triangle of a block's unseen positions is small, too: of 32, 64, 128, 256 and 512 rows
# 128 and 256 were fastest at T = 1024 in fp32 and bf16 (one core without AMX, 2026-11-23).
BLOCK_ROWS = 128


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
    """Say what was measured, in ms forward and backward, 12 heads of 64 x 1024 on one core without AMX, 2026-11-23.

    A band of 128 in fp32: fused 112, blocks 60, compiled 46. Dropout in fp32, which the CPU's fused kernel does not
    have: 264 and 178. bf16 fused 137, blocks compiled 126; with AMX 205 and 161 for 48 heads; 48 heads of 32 x 64:
    10.2 and 3.3. Without any of these, fp32: fused 78, blocks compiled 100.
    """
    if q_BHTD.device.type != "cpu":
        return False
    is_compiled_bf16 = q_BHTD.dtype == torch.bfloat16 and torch.compiler.is_compiling()
    return band is not None or dropout > 0.0 or is_compiled_bf16


def blocked_attention(
    q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, *, band: int | None = None, dropout: float = 0.0
) -> Tensor:
    """Return the same as ``causal_attention``: for each block of rows two products and a softmax in fp32.

    A block reads only the positions its rows see, so that a band of W costs T (R + W) and not T^2.
    """
    num_positions = q_BHTD.shape[-2]
    scale = 1.0 / math.sqrt(q_BHTD.shape[-1])
    blocks = []
    for start in range(0, num_positions, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, num_positions)
        first = 0 if band is None else max(0, start - band + 1)
        unseen_RS = _unseen(start, stop, first, band, q_BHTD.device)
        scores_BHRS = (q_BHTD[..., start:stop, :] @ k_BHTD[..., first:stop, :].mT).float()
        shares_BHRS = scores_BHRS.mul_(scale).masked_fill_(unseen_RS, -math.inf).softmax(-1)
        shares_BHRS = F.dropout(shares_BHRS, dropout) if dropout else shares_BHRS
        blocks.append(shares_BHRS.to(v_BHTD.dtype) @ v_BHTD[..., first:stop, :])
    return torch.cat(blocks, -2)


def band_mask(num_positions: int, band: int, device: torch.device) -> Tensor:
    """Return a bool [T, T] mask, True where position i sees j: i - band < j <= i."""
    return ~_unseen(0, num_positions, 0, band, device)


def _unseen(start: int, stop: int, first: int, band: int | None, device: torch.device) -> Tensor:
    """Return a bool [R, S] mask of positions from ``first`` to ``stop`` that rows from ``start`` on do not see."""
    rows_R1 = torch.arange(start, stop, device=device)[:, None]
    positions_S = torch.arange(first, stop, device=device)
    unseen_RS = positions_S > rows_R1
    return unseen_RS if band is None else unseen_RS | (positions_S <= rows_R1 - band)
