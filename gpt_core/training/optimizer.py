"""AdamW and Muon over a flat buffer of weights, or over one rank's part of it.

An AdamW step is two fused calls whatever the number of layers.  An element's update depends on
nothing but its own gradient, moments and weight, and a matrix's by Muon on nothing but its own,
so the parts of several ranks are together the bits of one process that holds all.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gpt_core.training.layout import Layout, Span
from gpt_core.training.schedule import Recipe


class FlatOptimizer:
    """The update of weights from a flat gradient.

    Args:
        layout: Where each parameter lies.
        weights: Flat fp32 master weights, or a part of them; changed in place by ``step``.
        recipe: Betas, epsilon, decay, and which optimizer.
        start: Where in the layout the part begins; with Muon it cuts no matrix of a block in two.
    """

    def __init__(self, layout: Layout, weights: Tensor, recipe: Recipe, start: int = 0) -> None:
        self.layout = layout
        self.recipe = recipe
        self.weights = weights
        self.start = start
        self.first_moment = torch.zeros_like(weights)
        self.second_moment = torch.zeros_like(weights)
        # Fused AdamW wants the step counts as tensors beside the weights.
        self._adamw_start = layout.matrices_stop if recipe.optimizer == "muon" else 0
        self._adamw = self._make_adamw()
        self._muon = self._make_muon() if recipe.optimizer == "muon" and self._matrices() else None

    @torch.no_grad()
    def step(self, gradient: Tensor, share: float, found_inf: Tensor | None = None) -> None:
        """Update the weights from their gradient; ``share`` is the schedule's share of the peak learning rates.

        found_inf: a scalar on the device, 1.0 to leave weights and moments as they are. AdamW reads it there, so
        that nobody waits for it.
        """
        self._adamw.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
        for group in self._adamw.param_groups:
            group["lr"] = self.recipe.learning_rate * share
            for parameter, span in zip(group["params"], group["spans"], strict=True):
                parameter.grad = gradient[span]
        self._adamw.step()
        if self._muon is not None and not (found_inf is not None and found_inf.item()):
            self._muon_step(self._muon, gradient, share)

    def named_moments(self) -> Iterator[tuple[str, str, Span]]:
        """Yield (name in a checkpoint, "first" or "second", place) of all moments; Muon keeps one of a matrix."""
        for span in self.layout.spans:
            yield f"first_moment/{span.name}", "first", span
            if span.start >= self._adamw_start:
                yield f"second_moment/{span.name}", "second", span

    def set_num_steps(self, num_steps: int) -> None:
        """Set the number of updates done, which decides the bias correction; used after loading moments."""
        for state in self._adamw.state.values():
            state["step"].fill_(num_steps)

    def _make_adamw(self) -> torch.optim.AdamW:
        recipe, decayed_stop = self.recipe, self.layout.decayed_stop
        spans = (
            self._mine(self._adamw_start, decayed_stop),
            self._mine(max(self._adamw_start, decayed_stop), self.layout.num_elements),
        )
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

    def _mine(self, start: int, stop: int) -> slice:
        """Return which of this part's elements lie in [start, stop) of the layout."""
        first, last = max(start - self.start, 0), min(stop - self.start, self.weights.numel())
        return slice(first, max(first, last))

    def _make_muon(self) -> torch.optim.Muon:
        recipe, matrices = self.recipe, self._matrices()
        parameters = [span.view(self.weights) for span in matrices]
        muon = torch.optim.Muon(parameters, lr=recipe.muon_learning_rate, weight_decay=recipe.weight_decay)
        for parameter, span in zip(parameters, matrices, strict=True):
            muon.state[parameter] = {"momentum_buffer": span.view(self.first_moment)}
        return muon

    def _matrices(self) -> list[Span]:
        """Return this part's matrices, placed as in the part."""
        return [
            Span(span.name, span.size, span.start - self.start, span.num_elements)
            for span in self.layout.matrices
            if self.start <= span.start < self.start + self.weights.numel()
        ]

    def _muon_step(self, muon: torch.optim.Muon, gradient: Tensor, share: float) -> None:
        (group,) = muon.param_groups
        group["lr"] = self.recipe.muon_learning_rate * share
        for parameter, span in zip(group["params"], self._matrices(), strict=True):
            parameter.grad = span.view(gradient)
        muon.step()
