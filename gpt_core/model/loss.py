"""Next-token cross-entropy over the tied output head, a few rows of logits at a time.

At 4 x 1024 positions and 50,257 tokens the logits alone are 823 MB in fp32 and their
gradient as much again.  Here the head's product, the softmax and both gradients of a chunk
of rows are computed together, and only the chunk's logits ever exist.

Shapes: N = B * T rows, n rows of a chunk, C width, V vocabulary.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Chunks amortise the products' overhead; blocks within one are exponentiated while in the
# second-level cache. Measured at V = 50,257, C = 128, one core: 336 ms for 1,024 rows, where
# log_softmax on whole chunks took 550 ms and the three products alone take 280 ms.
CPU_CHUNK_BYTES = 32 * 1024 * 1024
CPU_BLOCK_BYTES = 1536 * 1024
GPU_CHUNK_BYTES = 1024 * 1024 * 1024


def next_token_loss(hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor, *, compiled: bool = False) -> Tensor:
    """Return the mean loss in nats as an fp32 scalar, differentiable in both tensors.

    The products run in the dtype of ``hidden_BTC``, the softmax in fp32. In bf16 ``compiled`` fuses what is between
    the products: 160 x 50,257 logits take 8.1 ms instead of 16.2, in fp32 9.7 and 8.5 (one core, 2026-11-23).
    """
    hidden_NC = hidden_BTC.flatten(0, -2)
    softmax = _compiled_gradient() if compiled and hidden_NC.dtype == torch.bfloat16 else _gradient
    return _ChunkedLoss.apply(hidden_NC, weight_VC, targets_BT.flatten(), softmax)  # type: ignore[return-value]


def token_losses(hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor) -> Tensor:
    """Return every token's loss in nats, fp32 [B, T], without gradients."""
    with torch.no_grad():
        rows = rows_a_chunk(weight_VC)
        chunks = zip(hidden_BTC.flatten(0, -2).split(rows), targets_BT.flatten().split(rows), strict=True)
        losses = [_exponentiate(F.linear(x, weight_VC).float(), t)[0] for x, t in chunks]
        return torch.cat(losses).view_as(targets_BT)


def rows_a_chunk(weight_VC: Tensor) -> int:
    """Return the rows whose fp32 logits fill a chunk: a multiple of 16, and at least 16."""
    chunk_bytes = GPU_CHUNK_BYTES if weight_VC.device.type == "cuda" else CPU_CHUNK_BYTES
    return max(16, chunk_bytes // (4 * weight_VC.shape[0]) // 16 * 16)


class _ChunkedLoss(torch.autograd.Function):
    """The gradients are computed in the forward pass, while a chunk's logits are at hand.

    d loss / d logits = (e / s - onehot) / N with e the row's exponentials and s their sum.  The
    products take e - s onehot, and 1 / (s N) scales rows of width C instead of rows of V.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        targets_N: Tensor,
        softmax: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]],
    ) -> Tensor:
        num_rows = hidden_NC.shape[0]
        losses_N = torch.empty(num_rows, dtype=torch.float32, device=hidden_NC.device)
        grad_hidden_NC = torch.empty_like(hidden_NC)
        grad_weight_VC = torch.empty(0)
        rows = rows_a_chunk(weight_VC)
        logits_nV = hidden_NC.new_empty((min(rows, num_rows), weight_VC.shape[0]))
        for start in range(0, num_rows, rows):
            chunk = slice(start, min(start + rows, num_rows))
            x_nC = hidden_NC[chunk]
            chunk_nV = torch.mm(x_nC, weight_VC.t(), out=logits_nV[: x_nC.shape[0]])
            losses_N[chunk], grad_nV, sum_n1, grad_of_target_n1 = softmax(chunk_nV, targets_N[chunk])
            grad_nV.scatter_(1, targets_N[chunk, None], grad_of_target_n1.to(x_nC.dtype))
            scale_n1 = (1.0 / (sum_n1 * num_rows)).to(x_nC.dtype)
            torch.mm(grad_nV, weight_VC, out=grad_hidden_NC[chunk]).mul_(scale_n1)
            x_nC = x_nC * scale_n1
            grad_weight_VC = grad_weight_VC.addmm_(grad_nV.t(), x_nC) if start else grad_nV.t() @ x_nC
        ctx.save_for_backward(grad_hidden_NC, grad_weight_VC)
        return losses_N.sum() / num_rows

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden_NC, grad_weight_VC = ctx.saved_tensors  # type: ignore[attr-defined]
        (scale,) = grad_outputs
        if scale.device.type == "cpu" and scale.item() == 1.0:
            return grad_hidden_NC, grad_weight_VC, None, None
        return grad_hidden_NC * scale, grad_weight_VC * scale, None, None


def _gradient(logits_nV: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return losses [n], the rows' exponentials e in the logits' dtype, their sums s, and e - s at the targets.

    May overwrite the logits.
    """
    losses_n, exp_nV, sum_n1 = _exponentiate(logits_nV.float(), targets_n)
    target_n1 = exp_nV.gather(1, targets_n[:, None]) - sum_n1
    return losses_n, exp_nV.to(logits_nV.dtype), sum_n1, target_n1


def _gradient_in_one(logits_nV: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the same, written for the compiler: a pass for the maxima and one for all the rest."""
    wide_nV = logits_nV.float()
    top_n1 = wide_nV.amax(1, keepdim=True)
    exp_nV = (wide_nV - top_n1).exp()
    sum_n1 = exp_nV.sum(1, keepdim=True)
    target_n1 = wide_nV.gather(1, targets_n[:, None]) - top_n1
    return (sum_n1.log() - target_n1)[:, 0], exp_nV.to(logits_nV.dtype), sum_n1, target_n1.exp() - sum_n1


@functools.cache
def _compiled_gradient() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
    return torch.compile(_gradient_in_one)


def _exponentiate(logits_nV: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Replace fp32 logits by exp(logit - row maximum); return losses [n], them, and their sums [n, 1]."""
    target_n1 = logits_nV.gather(1, targets_n[:, None])
    top_n1, sum_n1 = torch.empty_like(target_n1), torch.empty_like(target_n1)
    rows = logits_nV.shape[0]
    if logits_nV.device.type == "cpu":
        rows = max(1, CPU_BLOCK_BYTES // (4 * logits_nV.shape[1]))
    for block, top, total in zip(logits_nV.split(rows), top_n1.split(rows), sum_n1.split(rows), strict=True):
        torch.amax(block, 1, keepdim=True, out=top)
        torch.sum(block.sub_(top).exp_(), 1, keepdim=True, out=total)
    return (sum_n1.log() + top_n1 - target_n1)[:, 0], logits_nV, sum_n1
