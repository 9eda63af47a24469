"""One sum, one tree: gradients added in an order that does not depend on the workers.

A step has K micro-batches, the leaves of one binary tree.  A rank adds its aligned slice of
them as a binary counter does (``TreeSum``); the ranks then add their subtrees by recursive
halving with the nearest partner first, after which each holds one part of the sum
(``scatter_sum``), and share the parts by recursive doubling (``gather_parts``).  Both together
(``sum_over_ranks``) are the upper part of the same tree at the traffic of a ring all-reduce,
2 (W - 1) / W of the buffer a rank.  Floating-point addition is commutative, so who adds to
whom is free; only the association is fixed, and where the parts are cut changes no bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gpt_core.training.training_plan import Reduction

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

    def scratch(self) -> Tensor:
        """Return a buffer for other use, valid until the next ``add``."""
        if not self._free:
            self._free.append(self._new_buffer())
        return self._free[-1][0]

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
    count = buffer.numel()
    cuts = [count * part // ranks.num_ranks for part in range(ranks.num_ranks + 1)]
    scatter_sum(buffer, cuts, ranks, reduction)
    gather_parts(buffer, cuts, ranks, reduction)


def add_over_ranks(values: np.ndarray, ranks: Ranks, device: torch.device) -> np.ndarray:
    """Return the sum of a few numbers over the ranks, on every rank; exact where all but one rank's are zeros."""
    if ranks.num_ranks == 1:
        return values
    tensor = torch.from_numpy(values).to(device)
    dist.all_reduce(tensor, group=ranks.group)
    return tensor.cpu().numpy()


def part_of(rank: int, num_ranks: int, reduction: Reduction) -> int:
    """Return the number of the part a rank ends with: in exact mode the rank's bits backwards.

    The lowest bit decides first, and decides about the largest halves.
    """
    if reduction == "fast":
        return rank
    part, num_bits = 0, num_ranks.bit_length() - 1
    for bit in range(num_bits):
        part |= (rank >> bit & 1) << (num_bits - 1 - bit)
    return part


def scatter_sum(buffer: Tensor, cuts: Sequence[int], ranks: Ranks, reduction: Reduction) -> Tensor:
    """Return a view of this rank's part of the buffer, now summed over the ranks; the rest is undefined.

    Args:
        buffer: Contiguous and flat, of one length on all ranks.
        cuts: Where part i begins and, at i + 1, ends; num_ranks + 1 rising positions.
        ranks: This process among its peers.
        reduction: As for ``sum_over_ranks``.
    """
    mine = part_of(ranks.rank, ranks.num_ranks, reduction)
    if reduction == "fast":
        for rank in range(ranks.num_ranks):
            dist.reduce(buffer[cuts[rank] : cuts[rank + 1]], group=ranks.group, group_dst=rank)
        return buffer[cuts[mine] : cuts[mine + 1]]
    scratch = buffer.new_empty(min(BUCKET_ELEMENTS, buffer.numel()))
    for partner, kept, sent in _halvings(cuts, ranks):
        _exchange(_buckets(buffer[sent]), _buckets(buffer[kept]), partner, ranks, scratch)
    return buffer[cuts[mine] : cuts[mine + 1]]


def gather_parts(buffer: Tensor, cuts: Sequence[int], ranks: Ranks, reduction: Reduction) -> None:
    """Fill the buffer with every rank's part of it: the exchanges of ``scatter_sum`` backwards."""
    if reduction == "fast":
        buffer = buffer.view(torch.uint8)  # gloo broadcasts no bf16
        cuts = [cut * buffer.numel() // cuts[-1] for cut in cuts]
        for rank in range(ranks.num_ranks):
            dist.broadcast(buffer[cuts[rank] : cuts[rank + 1]], group=ranks.group, group_src=rank)
        return
    for partner, held, missing in reversed(_halvings(cuts, ranks)):
        _exchange(_buckets(buffer[held]), _buckets(buffer[missing]), partner, ranks)


def _halvings(cuts: Sequence[int], ranks: Ranks) -> list[tuple[int, slice, slice]]:
    """Return (partner, span kept, span sent) of each halving; partners cut at the same place."""
    halvings = []
    first, last, distance = 0, ranks.num_ranks, 1
    while distance < ranks.num_ranks:
        middle = (first + last) // 2
        lower, upper = (first, middle), (middle, last)
        kept, sent = (upper, lower) if ranks.rank & distance else (lower, upper)
        spans = [slice(cuts[start], cuts[stop]) for start, stop in (kept, sent)]
        halvings.append((ranks.rank ^ distance, *spans))
        first, last = kept
        distance *= 2
    return halvings


def _buckets(span: Tensor) -> tuple[Tensor, ...]:
    return span.split(BUCKET_ELEMENTS)


def _exchange(
    sent: Sequence[Tensor], received: Sequence[Tensor], partner: int, ranks: Ranks, scratch: Tensor | None = None
) -> None:
    """Send some tensors and receive others, a pair at a time; with ``scratch``, add what is received."""
    for out, into in zip_longest(sent, received):
        if scratch is None or into is None:
            _send_and_receive(out, into, partner, ranks)
        else:
            landing = scratch[: into.numel()]
            _send_and_receive(out, landing, partner, ranks)
            into.add_(landing)


def _send_and_receive(sent: Tensor | None, received: Tensor | None, partner: int, ranks: Ranks) -> None:
    if ranks.group is not None:
        partner = dist.get_global_rank(ranks.group, partner)
    operations = [
        dist.P2POp(operation, tensor, partner, ranks.group)
        for operation, tensor in ((dist.isend, sent), (dist.irecv, received))
        if tensor is not None and tensor.numel()
    ]
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
