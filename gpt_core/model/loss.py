"""Next-token cross-entropy over the tied output head, a few rows of logits at a time.

At 4 x 1024 positions and 50,257 tokens the logits alone are 823 MB in fp32 and their
gradient as much again.  Here the head's product, the softmax and both gradients of a chunk
of rows are computed together, and only the chunk's logits ever exist.

Shapes: N = B * T rows, n rows of a chunk, C width, V vocabulary, P the same padded.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Chunks amortise the products' overhead; blocks within one are exponentiated in fp32 while in the second-level cache.
# bf16, 1,024 rows x 768, V = 50,257, one core: 755 ms in chunks of 160 rows, 651 of 512, 629 in one (2026-11-28).
CPU_CHUNK_BYTES = 128 * 1024 * 1024
CPU_BLOCK_BYTES = 1536 * 1024
GPU_CHUNK_BYTES = 1024 * 1024 * 1024
# Rows of logits that are no multiple of a cache line keep products from their fast kernels: for 4,096 rows x 768 and
# V = 50,257 loss and gradients take 2.31 s padded and 2.52 not in bf16 on one core (2026-11-28). On a CPU a small head
# gains less than the copy costs.
VOCABULARY_MULTIPLE = 64
CPU_LEAST_PADDED = 4096
# The copy of 512 rows x 768 stays in the second-level cache: 50,304 rows take 12 ms, 24 to 45 in one (2026-11-30).
CPU_ROWS_ADDED = 512
# e^x = 2^(x log2 e): on an EPYC the library takes 204 us for exp of 7 x 50,257 numbers in fp32, 59 for this.
_LOG2_E = 1.0 / math.log(2.0)
Softmax = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def next_token_loss(hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor, *, compiled: bool = False) -> Tensor:
    """Return the mean loss in nats as an fp32 scalar, differentiable in both tensors.

    The products run in the dtype of ``hidden_BTC``, the softmax in fp32; on a GPU ``compiled`` fuses what is between
    the products.
    """
    hidden_NC = hidden_BTC.flatten(0, -2)
    softmax = _softmax_on(hidden_NC.device, compiled=compiled)
    return _ChunkedLoss.apply(hidden_NC, weight_VC, targets_BT.flatten(), softmax)  # type: ignore[return-value]


def token_losses(hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor) -> Tensor:
    """Return every token's loss in nats, fp32 [B, T], without gradients."""
    with torch.no_grad():
        rows = rows_a_chunk(weight_VC)
        chunks = zip(hidden_BTC.flatten(0, -2).split(rows), targets_BT.flatten().split(rows), strict=True)
        losses = [_exponentiate(F.linear(x, weight_VC), t)[0] for x, t in chunks]
        return torch.cat(losses).view_as(targets_BT)


def rows_a_chunk(weight_VC: Tensor) -> int:
    """Return the rows whose fp32 logits fill a chunk: a multiple of 16, and at least 16."""
    chunk_bytes = GPU_CHUNK_BYTES if weight_VC.device.type == "cuda" else CPU_CHUNK_BYTES
    return max(16, chunk_bytes // (4 * weight_VC.shape[0]) // 16 * 16)


def even_rows(num_rows: int, most: int) -> int:
    """Return the rows of equal chunks of at most so many rows, ``most`` where fewer than twice as many chunks are none.

    For chunks of one shape alone a compiler and a matrix library have to make ready.
    """
    fewest = -(-num_rows // most)
    return next((num_rows // count for count in range(fewest, 2 * fewest) if num_rows % count == 0), most)


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
        softmax: Softmax,
    ) -> Tensor:
        num_rows, vocabulary_size = hidden_NC.shape[0], weight_VC.shape[0]
        losses_N = torch.empty(num_rows, dtype=torch.float32, device=hidden_NC.device)
        grad_hidden_NC = torch.empty_like(hidden_NC)
        grad_head_PC = torch.empty(0)
        head_PC = _padded(weight_VC)
        rows = even_rows(num_rows, rows_a_chunk(weight_VC))
        # Chunks are added up in fp32: in bf16 what a later one adds would be rounded to what is there.
        sum_dtype = torch.float32 if rows < num_rows else weight_VC.dtype
        logits_nP = hidden_NC.new_empty((min(rows, num_rows), head_PC.shape[0]))
        for start in range(0, num_rows, rows):
            chunk = slice(start, min(start + rows, num_rows))
            x_nC = hidden_NC[chunk]
            grad_nP = torch.mm(x_nC, head_PC.t(), out=logits_nP[: x_nC.shape[0]])
            losses_N[chunk], sum_n1, grad_of_target_n1 = softmax(grad_nP[:, :vocabulary_size], targets_N[chunk])
            grad_nP.scatter_(1, targets_N[chunk, None], grad_of_target_n1.to(x_nC.dtype))
            scale_n1 = (1.0 / (sum_n1 * num_rows)).to(x_nC.dtype)
            torch.mm(grad_nP, head_PC, out=grad_hidden_NC[chunk]).mul_(scale_n1)
            grad_PC = grad_nP.t() @ (x_nC * scale_n1)
            grad_head_PC = _add_to(grad_head_PC, grad_PC) if start else grad_PC.to(sum_dtype)
        ctx.save_for_backward(grad_hidden_NC, grad_head_PC[:vocabulary_size].to(weight_VC.dtype))
        return losses_N.sum() / num_rows

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden_NC, grad_weight_VC = ctx.saved_tensors  # type: ignore[attr-defined]
        (scale,) = grad_outputs
        if scale.device.type == "cpu" and scale.item() == 1.0:
            return grad_hidden_NC, grad_weight_VC, None, None
        return grad_hidden_NC * scale, grad_weight_VC * scale, None, None


def _add_to(sum_PC: Tensor, grad_PC: Tensor) -> Tensor:
    """Add a gradient to a sum, on a CPU some rows at a time: there torch copies what is added into fp32 first."""
    if sum_PC.device.type != "cpu":
        return sum_PC.add_(grad_PC)
    for rows_rC, added_rC in zip(sum_PC.split(CPU_ROWS_ADDED), grad_PC.split(CPU_ROWS_ADDED), strict=True):
        rows_rC.add_(added_rC)
    return sum_PC


def _padded(weight_VC: Tensor) -> Tensor:
    """Return the head with rows of zeros up to a multiple that products like, where that pays.

    The logits of these rows are 0, and so is what they add to the gradient of the hidden states.
    """
    if weight_VC.device.type == "cpu" and weight_VC.shape[0] < CPU_LEAST_PADDED:
        return weight_VC
    return F.pad(weight_VC, (0, 0, 0, -weight_VC.shape[0] % VOCABULARY_MULTIPLE))


def _exponentiate_in_one(logits_nV: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same as ``_exponentiate``, written for the compiler: a pass for the maxima and one for all the rest."""
    wide_nV = logits_nV.float()
    top_n1 = wide_nV.amax(1, keepdim=True)
    target_n1 = wide_nV.gather(1, targets_n[:, None]) - top_n1
    exp_nV = (wide_nV - top_n1).exp()
    sum_n1 = exp_nV.sum(1, keepdim=True)
    logits_nV.copy_(exp_nV)
    return (sum_n1.log() - target_n1)[:, 0], sum_n1, target_n1.exp() - sum_n1


def _softmax_on(device: torch.device, *, compiled: bool) -> Softmax:
    """Return what is faster: on a CPU blocks that stay in the cache, compiled or not.

    A compiled step of the quickstart's model takes 99 ms with them and 105 without (one core of an EPYC, 2026-11-28).
    """
    return _compiled_exponentiate() if compiled and device.type == "cuda" else _exponentiate


@functools.cache
def _compiled_exponentiate() -> Softmax:
    return torch.compile(_exponentiate_in_one)


def _exponentiate(logits_nV: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Replace logits by their exponentials e, relative to the row's maximum.

    Returns losses [n], the rows' sums s [n, 1], and e - s at the targets [n, 1], all taken in fp32.
    """
    target_n1 = logits_nV.gather(1, targets_n[:, None]).float()
    top_n1, sum_n1 = torch.empty_like(target_n1), torch.empty_like(target_n1)
    rows = logits_nV.shape[0]
    if logits_nV.device.type == "cpu":
        rows = max(1, CPU_BLOCK_BYTES // (4 * logits_nV.shape[1]))
    for block, top, total in zip(logits_nV.split(rows), top_n1.split(rows), sum_n1.split(rows), strict=True):
        wide = block.float()
        torch.amax(wide, 1, keepdim=True, out=top)
        torch.sum(wide.sub_(top).mul_(_LOG2_E).exp2_(), 1, keepdim=True, out=total)
        block.copy_(wide)
    target_n1 -= top_n1
    return (sum_n1.log() - target_n1)[:, 0], sum_n1, target_n1.exp_() - sum_n1
