"""Where each parameter lies in one flat buffer, and where that buffer is cut for ranks to share it.

What the optimizer treats alike is contiguous: block matrices, then embeddings, then vectors.  A
buffer is a whole number of chunks, which are the grain of cuts and of gradient norms: a number
taken chunk by chunk does not depend on which rank holds which.
"""

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Each tensor starts on a cache line (16 fp32), so that matrix kernels see aligned rows.
ALIGNMENT_ELEMENTS = 16
# A block's matrix starts a chunk, so that ranks can share the matrices whole. Every published model's
# block matrices are multiples of this.
CHUNK_ELEMENTS = 4096


@dataclass(frozen=True, slots=True)
class Span:
    """One parameter's place in the flat buffer."""

    name: str
    size: tuple[int, ...]
    start: int
    num_elements: int

    @property
    def stop(self) -> int:
        """Where it ends."""
        return self.start + self.num_elements

    def view(self, flat: Tensor) -> Tensor:
        """Return the parameter's part of a flat buffer, in its own size."""
        return flat[self.start : self.stop].view(self.size)

    def copy_part(self, values: Tensor, part: Tensor, part_start: int) -> None:
        """Copy what a part of the buffer holds of this parameter out of the whole of it, in ``values``."""
        start, stop = max(self.start, part_start), min(self.stop, part_start + part.numel())
        if start < stop:
            part[start - part_start : stop - part_start].copy_(
                values.reshape(-1)[start - self.start : stop - self.start]
            )


@dataclass(frozen=True, slots=True)
class Layout:
    """Every parameter's place: [matrices of the blocks | embeddings | vectors].

    Weight decay applies to ``[:decayed_stop]``, the tensors of two and more dimensions; Muon, where
    chosen, to ``[:matrices_stop]``.
    """

    spans: tuple[Span, ...]
    matrices_stop: int
    decayed_stop: int
    num_elements: int

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return every parameter's part of a flat buffer, by name."""
        return {span.name: span.view(flat) for span in self.spans}

    @property
    def matrices(self) -> tuple[Span, ...]:
        """The matrices of the blocks, which Muon may update."""
        return tuple(span for span in self.spans if span.start < self.matrices_stop)

    @property
    def num_chunks(self) -> int:
        """Chunks of the buffer."""
        return self.num_elements // CHUNK_ELEMENTS

    def cuts(self, num_parts: int, *, whole_matrices: bool = False) -> tuple[int, ...]:
        """Return num_parts + 1 rising positions that cut the buffer into nearly equal parts of whole chunks.

        whole_matrices: cut no matrix of a block in two; parts may then be empty.
        """
        even = [self.num_chunks * part // num_parts * CHUNK_ELEMENTS for part in range(num_parts + 1)]
        if not whole_matrices:
            return tuple(even)
        borders = [*(span.start for span in self.matrices), self.matrices_stop]
        return tuple(cut if cut >= self.matrices_stop else _nearest(borders, cut) for cut in even)


def _nearest(borders: list[int], position: int) -> int:
    index = bisect_left(borders, position)
    return min(borders[max(index - 1, 0) : index + 1], key=lambda border: abs(border - position))


def layout_of(model: nn.Module) -> Layout:
    """Return the layout of a model's parameters; it depends on their names and sizes alone."""
    groups: tuple[list[tuple[str, Tensor]], ...] = ([], [], [])
    for name, parameter in model.named_parameters():
        group = 2 if parameter.ndim < 2 else 0 if name.startswith("h.") else 1
        groups[group].append((name, parameter))
    spans: list[Span] = []
    stops: list[int] = []
    position = 0
    for group, alignment in zip(groups, (CHUNK_ELEMENTS, ALIGNMENT_ELEMENTS, ALIGNMENT_ELEMENTS), strict=True):
        for name, parameter in group:
            spans.append(Span(name, tuple(parameter.shape), position, parameter.numel()))
            position += _rounded_up(parameter.numel(), alignment)
        stops.append(position)
    return Layout(tuple(spans), stops[0], stops[1], _rounded_up(position, CHUNK_ELEMENTS))


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def chunk_norms(gradient: Tensor) -> Tensor:
    """Return the L2 norm of each chunk of a flat buffer, or of a part of whole chunks, fp32 [chunks]."""
    return torch.linalg.vector_norm(gradient.view(-1, CHUNK_ELEMENTS), dim=1)


def clip_(gradient: Tensor, norms: Tensor, scale: float, clip_norm: float) -> Tensor:
    """Multiply a flat gradient, or a part of it, by ``scale`` and limit the whole's norm to ``clip_norm``, in place.

    Returns the whole's norm before clipping and after scaling, a scalar tensor.  It follows from the
    norms of all chunks in their order, which every rank has, so that it depends neither on the number of
    ranks nor on who holds what.
    """
    norm = torch.linalg.vector_norm(norms) * scale
    limit = torch.clamp(clip_norm / (norm + 1e-6), max=1.0)
    gradient.mul_(limit * scale)
    return norm
