"""AdamW and Muon over one flat buffer, and the layout that makes it one.

All weights lie in a single fp32 tensor, ordered so that what the optimizer treats alike is
contiguous: block matrices, then embeddings, then vectors.  An AdamW step is then two fused
calls whatever the number of layers, and the gradient norm one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt_core.schedule import Recipe

# Each tensor starts on a cache line (16 fp32), so that matrix kernels see aligned rows.
ALIGNMENT_ELEMENTS = 16


@dataclass(frozen=True, slots=True)
class Span:
    """One parameter's place in the flat buffer."""

    name: str
    size: tuple[int, ...]
    start: int
    num_elements: int

    def view(self, flat: Tensor) -> Tensor:
        """Return the parameter's part of a flat buffer, in its own size."""
        return flat[self.start : self.start + self.num_elements].view(self.size)


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


def layout_of(model: nn.Module) -> Layout:
    """Return the layout of a model's parameters; it depends on their names and sizes alone."""
    groups: tuple[list[tuple[str, Tensor]], ...] = ([], [], [])
    for name, parameter in model.named_parameters():
        group = 2 if parameter.ndim < 2 else 0 if name.startswith("h.") else 1
        groups[group].append((name, parameter))
    spans: list[Span] = []
    stops: list[int] = []
    position = 0
    for group in groups:
        for name, parameter in group:
            spans.append(Span(name, tuple(parameter.shape), position, parameter.numel()))
            position += -(-parameter.numel() // ALIGNMENT_ELEMENTS) * ALIGNMENT_ELEMENTS
        stops.append(position)
    return Layout(tuple(spans), stops[0], stops[1], stops[2])


class FlatOptimizer:
    """The update of all weights from one flat gradient.

    Args:
        layout: Where each parameter lies.
        weights: Flat fp32 master weights; changed in place by ``step``.
        recipe: Betas, epsilon, decay, and which optimizer.
    """

    def __init__(self, layout: Layout, weights: Tensor, recipe: Recipe) -> None:
        self.layout = layout
        self.recipe = recipe
        self.weights = weights
        self.first_moment = torch.zeros_like(weights)
        self.second_moment = torch.zeros_like(weights)
        # Fused AdamW wants the step counts as tensors beside the weights.
        self._adamw_start = layout.matrices_stop if recipe.optimizer == "muon" else 0
        self._adamw = self._make_adamw()
        self._muon = self._make_muon() if recipe.optimizer == "muon" else None

    @torch.no_grad()
    def step(self, gradient: Tensor, share: float) -> None:
        """Update the weights; ``share`` is the schedule's share of the peak learning rates."""
        for group in self._adamw.param_groups:
            group["lr"] = self.recipe.learning_rate * share
            for parameter, span in zip(group["params"], group["spans"], strict=True):
                parameter.grad = gradient[span]
        self._adamw.step()
        if self._muon is not None:
            self._muon_step(self._muon, gradient, share)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield ("first_moment/NAME" or "second_moment/NAME", view) of the moments in use."""
        return self.views(self.first_moment, self.second_moment)

    def views(self, first_moment: Tensor, second_moment: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the same names with views of other flat buffers; Muon keeps one moment of a matrix."""
        for span in self.layout.spans:
            yield f"first_moment/{span.name}", span.view(first_moment)
            if span.start >= self._adamw_start:
                yield f"second_moment/{span.name}", span.view(second_moment)

    def set_num_steps(self, num_steps: int) -> None:
        """Set the number of updates done, which decides the bias correction; used after loading moments."""
        for state in self._adamw.state.values():
            state["step"].fill_(num_steps)

    def _make_adamw(self) -> torch.optim.AdamW:
        recipe, decayed_stop = self.recipe, self.layout.decayed_stop
        spans = (slice(self._adamw_start, decayed_stop), slice(decayed_stop, self.layout.num_elements))
        groups = [
            {"params": [self.weights[span]], "spans": [span], "weight_decay": decay}
            for span, decay in zip(spans, (recipe.weight_decay, 0.0), strict=True)
        ]
        betas = (recipe.beta1, recipe.beta2)
        adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=recipe.epsilon, fused=True)
        for group, span in zip(adamw.param_groups, spans, strict=True):
            adamw.state[group["params"][0]] = {
                "step": torch.zeros((), dtype=torch.float32, device=self.weights.device),
                "exp_avg": self.first_moment[span],
                "exp_avg_sq": self.second_moment[span],
            }
        return adamw

    def _make_muon(self) -> torch.optim.Muon:
        recipe, matrices = self.recipe, self.layout.matrices
        parameters = [span.view(self.weights) for span in matrices]
        muon = torch.optim.Muon(parameters, lr=recipe.muon_learning_rate, weight_decay=recipe.weight_decay)
        for parameter, span in zip(parameters, matrices, strict=True):
            muon.state[parameter] = {"momentum_buffer": span.view(self.first_moment)}
        return muon

    def _muon_step(self, muon: torch.optim.Muon, gradient: Tensor, share: float) -> None:
        (group,) = muon.param_groups
        group["lr"] = self.recipe.muon_learning_rate * share
        for parameter, span in zip(group["params"], self.layout.matrices, strict=True):
            parameter.grad = span.view(gradient)
        muon.step()


def clip_(gradient: Tensor, scale: float, clip_norm: float) -> Tensor:
    """Multiply a flat gradient by ``scale`` and limit its norm to ``clip_norm``, in one pass, in place.

    Returns the norm before clipping and after scaling, a scalar tensor.  Every rank holds the same
    bits and computes the norm from all of them, so the result does not depend on the ranks.
    """
    norm = torch.linalg.vector_norm(gradient) * scale
    limit = torch.clamp(clip_norm / (norm + 1e-6), max=1.0)
    gradient.mul_(limit * scale)
    return norm
