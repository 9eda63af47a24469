"""One sum, one tree: gradients added in an order that does not depend on the workers.

A step has K micro-batches, the leaves of one binary tree.  A rank adds its aligned slice of
them as a binary counter does (``TreeSum``); the ranks then add their subtrees by recursive
halving with the nearest partner first and share the result by recursive doubling
(``sum_over_ranks``), which is the upper part of the same tree at the traffic of a ring
all-reduce, 2 (W - 1) / W of the buffer a rank.  Floating-point addition is commutative, so
who adds to whom is free; only the association is fixed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gpt_core.training_plan import Reduction

BUCKET_ELEMENTS = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together; the process group is the caller's."""

    rank: int = 0
    num_ranks: int = 1
    group: dist.ProcessGroup | None = None


class TreeSum:
    """Adds contributions one by one, in fp32, associated as a balanced binary tree.

    Holds one flat buffer a level: log2(K) + 1 of them for K contributions, kept between steps.
    A contribution is copied only when it has no partner yet.

    Args:
        make_buffer: Returns a flat fp32 buffer.
        split: Returns the tensors of a buffer that take one contribution, in its order.
    """

    def __init__(self, make_buffer: Callable[[], Tensor], split: Callable[[Tensor], list[Tensor]]) -> None:
        self._make_buffer = make_buffer
        self._split = split
        self._free: list[tuple[Tensor, list[Tensor]]] = []
        self._stack: list[tuple[int, Tensor, list[Tensor]]] = []  # (level, buffer, its tensors)

    def add(self, contribution: Sequence[Tensor]) -> None:
        """Take the next leaf; the tensors may be reused by the caller afterwards."""
        if self._stack and self._stack[-1][0] == 0:
            _, buffer, tensors = self._stack.pop()
            torch._foreach_add_(tensors, list(contribution))  # pyright: ignore[reportPrivateImportUsage]
            self._push(1, buffer, tensors)
            return
        buffer, tensors = self._free.pop() if self._free else self._new_buffer()
        torch._foreach_copy_(tensors, list(contribution))  # pyright: ignore[reportPrivateImportUsage]
        self._push(0, buffer, tensors)

    def take(self) -> Tensor:
        """Return the sum of all leaves and start anew; the buffer is valid until the next ``add``."""
        while len(self._stack) > 1:
            level, upper, tensors = self._stack.pop()
            below_level, below, below_tensors = self._stack.pop()
            below.add_(upper)
            self._free.append((upper, tensors))
            self._stack.append((max(level, below_level) + 1, below, below_tensors))
        _, buffer, tensors = self._stack.pop()
        self._free.append((buffer, tensors))
        return buffer

    def _push(self, level: int, buffer: Tensor, tensors: list[Tensor]) -> None:
        while self._stack and self._stack[-1][0] == level > 0:
            _, below, below_tensors = self._stack.pop()
            below.add_(buffer)
            self._free.append((buffer, tensors))
            level, buffer, tensors = level + 1, below, below_tensors
        self._stack.append((level, buffer, tensors))

    def _new_buffer(self) -> tuple[Tensor, list[Tensor]]:
        buffer = self._make_buffer()
        return buffer, self._split(buffer)


def sum_over_ranks(buffer: Tensor, ranks: Ranks, reduction: Reduction) -> None:
    """Replace a contiguous flat buffer, on every rank, by the sum over the ranks.

    "exact": rank r's buffer is leaf r of a balanced binary tree, and every rank ends with the same
    bits, those of one process adding the same leaves.  "fast": the library's all-reduce.
    """
    if ranks.num_ranks == 1:
        return
    if reduction == "fast":
        dist.all_reduce(buffer, group=ranks.group)
        return
    scratch = torch.empty(min(BUCKET_ELEMENTS, buffer.numel()), dtype=buffer.dtype, device=buffer.device)
    for bucket in buffer.split(BUCKET_ELEMENTS):
        _halve(bucket, scratch, ranks)
        _double(bucket, ranks)


def _halve(bucket: Tensor, scratch: Tensor, ranks: Ranks) -> None:
    """Reduce-scatter: after it, this rank's span of the bucket is summed over all ranks."""
    distance = 1
    start, stop = 0, bucket.numel()
    while distance < ranks.num_ranks:
        kept, sent = _halves(start, stop, keep_lower=not ranks.rank & distance)
        received = scratch[: kept[1] - kept[0]]
        _exchange(bucket[slice(*sent)], received, ranks.rank ^ distance, ranks)
        bucket[slice(*kept)].add_(received)
        start, stop = kept
        distance *= 2


def _double(bucket: Tensor, ranks: Ranks) -> None:
    """All-gather: the exchanges of ``_halve`` backwards, each rank sending what it holds."""
    spans = [(0, bucket.numel())]
    distance = 1
    while distance < ranks.num_ranks:
        spans.append(_halves(*spans[-1], keep_lower=not ranks.rank & distance)[0])
        distance *= 2
    for whole, held in zip(spans[-2::-1], spans[:0:-1], strict=True):
        distance //= 2
        missing = (held[1], whole[1]) if held[0] == whole[0] else (whole[0], held[0])
        _exchange(bucket[slice(*held)], bucket[slice(*missing)], ranks.rank ^ distance, ranks)


def _halves(start: int, stop: int, *, keep_lower: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (kept, sent) spans; partners hold equal [start, stop), so both cut at the same place."""
    middle = (start + stop) // 2
    lower, upper = (start, middle), (middle, stop)
    return (lower, upper) if keep_lower else (upper, lower)


def _exchange(sent: Tensor, received: Tensor, partner: int, ranks: Ranks) -> None:
    if ranks.group is not None:
        partner = dist.get_global_rank(ranks.group, partner)
    operations = [
        dist.P2POp(dist.isend, sent, partner, ranks.group),
        dist.P2POp(dist.irecv, received, partner, ranks.group),
    ]
    operations = [operation for operation in operations if operation.tensor.numel()]
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
