"""Next-token cross-entropy over the tied output head, a few rows of logits at a time.

At 4 x 1024 positions and 50,257 tokens the logits alone are 823 MB in fp32 and their
gradient as much again.  Here the head's product, the softmax and both gradients of a chunk
of rows are computed together, and only the chunk's logits ever exist.

Shapes: N = B * T rows, C width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_BYTES_A_CHUNK = 64 * 1024 * 1024


def next_token_loss(hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the mean loss in nats as an fp32 scalar, differentiable in both tensors.

    The logits are computed in the dtype of ``hidden_BTC``, the softmax in fp32.
    """
    hidden_NC = hidden_BTC.flatten(0, -2)
    return _ChunkedLoss.apply(hidden_NC, weight_VC, targets_BT.flatten())  # type: ignore[return-value]


def token_losses(hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor) -> Tensor:
    """Return every token's loss in nats, fp32 [B, T], without gradients."""
    with torch.no_grad():
        rows = rows_a_chunk(weight_VC.shape[0])
        chunks = zip(hidden_BTC.flatten(0, -2).split(rows), targets_BT.flatten().split(rows), strict=True)
        losses = [F.cross_entropy(F.linear(x, weight_VC).float(), t, reduction="none") for x, t in chunks]
        return torch.cat(losses).view_as(targets_BT)


def rows_a_chunk(vocabulary_size: int) -> int:
    """Rows whose fp32 logits fill about LOGITS_BYTES_A_CHUNK, a multiple of 16 and at least 16."""
    return max(16, LOGITS_BYTES_A_CHUNK // (4 * vocabulary_size) // 16 * 16)


class _ChunkedLoss(torch.autograd.Function):
    """The gradients are computed in the forward pass, while a chunk's logits are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> Tensor:
        num_rows = hidden_NC.shape[0]
        losses_N = torch.empty(num_rows, dtype=torch.float32, device=hidden_NC.device)
        grad_hidden_NC = torch.empty_like(hidden_NC)
        grad_weight_VC: Tensor | None = None
        rows = rows_a_chunk(weight_VC.shape[0])
        for start in range(0, num_rows, rows):
            chunk = slice(start, start + rows)
            logits_nV = F.linear(hidden_NC[chunk], weight_VC)
            losses_N[chunk], grad_nV = _softmax_and_gradient(logits_nV, targets_N[chunk], num_rows)
            torch.mm(grad_nV, weight_VC, out=grad_hidden_NC[chunk])
            if grad_weight_VC is None:
                grad_weight_VC = grad_nV.t() @ hidden_NC[chunk]
            else:
                grad_weight_VC.addmm_(grad_nV.t(), hidden_NC[chunk])
        ctx.save_for_backward(grad_hidden_NC, grad_weight_VC)
        return losses_N.sum() / num_rows

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden_NC, grad_weight_VC = ctx.saved_tensors
        (scale,) = grad_outputs
        if scale.device.type == "cpu" and scale.item() == 1.0:
            return grad_hidden_NC, grad_weight_VC, None
        return grad_hidden_NC * scale, grad_weight_VC * scale, None


def _softmax_and_gradient(logits_nV: Tensor, targets_n: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return losses [n] fp32 and d(mean loss)/d(logits) [n, V] in the dtype of the logits."""
    log_p_nV = torch.log_softmax(logits_nV, dim=-1, dtype=torch.float32)
    index_n1 = targets_n[:, None]
    losses_n = -log_p_nV.gather(1, index_n1)[:, 0]
    grad_nV = log_p_nV.exp_()
    grad_nV.scatter_add_(1, index_n1, grad_nV.new_full((1, 1), -1.0).expand_as(index_n1))
    return losses_n, grad_nV.mul_(1.0 / num_rows).to(logits_nV.dtype)
