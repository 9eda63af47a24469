"""One model, its optimizer, and the step: micro-batches in, weights changed.

Called by the training loop, by the benchmarks and by replays.  Invariant: in exact mode the
weights, the moments and the reported numbers after a step depend on (shape, recipe, seed,
batches, dtype, threads), and neither on how many ranks shared the micro-batches nor on whether
they shared the optimizer's state.

Sharding "optimizer" (ZeRO-1, Rajbhandari et al. 2020): reducing by halves leaves each rank with one
part of the summed gradient.  It keeps the master weights and moments of that part alone, updates
it, and the ranks gather the weights to compute with.

Shapes: B sequences, T positions, V vocabulary; a window is T + 1 tokens.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_core.finetuning.masked_loss import masked_next_token_loss, summed_over_targets
from gpt_core.finetuning.masked_windows import is_masked, num_targets, target_rows, unmasked
from gpt_core.model.compiled import compiled_layers
from gpt_core.model.gpt import GPT, initial_values
from gpt_core.model.loss import next_token_loss, token_losses
from gpt_core.model.presets import ModelShape
from gpt_core.training.layout import CHUNK_ELEMENTS, Layout, chunk_norms, clip_, layout_of
from gpt_core.training.optimizer import FlatOptimizer
from gpt_core.training.reduction import Ranks, TreeSum, gather_parts, part_of, scatter_sum, sum_over_ranks
from gpt_core.training.schedule import Recipe
from gpt_core.training.step import (
    NO_VOTES,
    Compute,
    StepReport,
    Votes,
    checked_report,
    dropout_key,
    ids_on,
    make_cuda_deterministic,
)
from gpt_core.training.training_plan import check_batch_plan

# Behind the gradients in the flat buffer ride the loss and the ranks' votes: they are summed by the
# gradient's own messages. 16 elements keep the alignment.
TAIL_ELEMENTS = 16
_LOSS, _STOP, _SAVE, _TARGETS = range(4)


class Snapshot(NamedTuple):
    """CPU copies by name that later steps leave alone: fp32 weights, and moments as "first_moment/NAME"."""

    weights: dict[str, Tensor]
    optimizer_state: dict[str, Tensor]

    def digest(self) -> str:
        """Return SHA-256 over names and bytes of all tensors in their order."""
        sha256 = hashlib.sha256()
        for tensors in self:
            for name, tensor in tensors.items():
                sha256.update(name.encode())
                sha256.update(tensor.contiguous().numpy().tobytes())
        return sha256.hexdigest()


class Learner:
    """A GPT in training.

    Args:
        shape: The model.
        recipe: Optimizer and clipping.
        seed: Decides the starting weights and, with step and micro-batch, the dropout.
        compute: Device, dtype (bf16 keeps fp32 master weights), reduction, sharding, compilation.
        ranks: This process among its peers.
    """

    def __init__(
        self,
        shape: ModelShape,
        recipe: Recipe,
        seed: int,
        compute: Compute | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.shape = shape
        self.recipe = recipe
        self.seed = seed
        self.compute = compute or Compute()
        self.ranks = ranks or Ranks()
        self.step = 0
        if self.compute.device.type == "cuda" and self.compute.reduction == "exact":
            make_cuda_deterministic()
        self.model = GPT(shape, device="meta")
        self.model.recomputes_blocks = self.compute.activation_checkpointing
        self.layout = layout_of(self.model)
        self._cuts = self._choose_cuts()
        self._part = self._choose_part()
        self._computed = self._flat_buffer(self.compute.dtype)
        self._masters = self._computed[self._part].float()  # the same memory where the dtype is fp32
        _place_parameters(self.model, self.layout, self._computed)
        self.optimizer = FlatOptimizer(self.layout, self._masters, recipe, self._part.start)
        self._sum = TreeSum(lambda: self._flat_buffer(torch.float32, TAIL_ELEMENTS), self._contribution_views)
        self._parameters = [self.model.get_parameter(span.name) for span in self.layout.spans]
        self._losses: list[Tensor] = []
        compiled = self.compute.compiled
        self._layers = compiled_layers(self.model, self.compute.device) if compiled else self.model.layers

    def initialise(self) -> "Learner":
        """Fill the weights with GPT-2's starting values for the seed."""
        for span in self.layout.spans:
            values = initial_values(span.name, span.size, self.shape.n_layer, self.seed)
            span.copy_part(values, self._masters, self._part.start)
        self._refresh_computed()
        return self

    def take_step(self, micro_batches: np.ndarray, share: float, votes: Votes = NO_VOTES) -> StepReport:
        """Train on this rank's micro-batches and change the weights.

        Args:
            micro_batches: int64 [k, B, T + 1]; rank r has those from r k to (r + 1) k of the step. Where they are
                masked, the loss is the mean over the targets of the whole step, on whatever ranks they are.
            share: The schedule's share of the peak learning rate.
            votes: What this rank wishes for after the step.

        Raises:
            RunFailedError: A loss or gradient that is not finite; the weights are left as they were.
            SettingsError: Ranks that cannot share these micro-batches.
        """
        count = micro_batches.shape[0] * self.ranks.num_ranks
        check_batch_plan(count, self.ranks.num_ranks, self.compute.reduction)
        total = self._add_own(micro_batches)
        total[self.layout.num_elements + _STOP] = float(votes.stop)
        total[self.layout.num_elements + _SAVE] = float(votes.save)
        total[self.layout.num_elements + _TARGETS] = float(num_targets(micro_batches))  # exact below 2^24 a step
        gradient, norms, tail = self._add_over_ranks(total)
        if is_masked(micro_batches):  # then on all ranks: the last token of every window is
            count = tail[_TARGETS].item() / micro_batches[0, :, 1:].size
        norm = clip_(gradient, norms, 1.0 / count, self.recipe.clip_norm)
        numbers = torch.stack((tail[_LOSS] / count, norm, tail[_STOP], tail[_SAVE]))
        self.optimizer.step(gradient, share, found_inf=(~numbers[:2].isfinite()).any().float())
        self._refresh_computed()
        report = checked_report(self.step, numbers)  # a GPU is waited for here, with all of the step under way
        self.step += 1
        return report

    @property
    def micro_losses(self) -> list[float]:
        """The mean losses of this rank's micro-batches of the last step."""
        return [loss.item() for loss in self._losses]

    @torch.no_grad()
    def window_losses(self, windows: np.ndarray) -> np.ndarray:
        """Return each window's summed loss in nats over its targets, float64 [n], for int64 windows [n, T + 1]."""
        self.model.eval()
        ids = torch.from_numpy(unmasked(windows)).to(self.compute.device)
        losses_BT = token_losses(self.model.hidden(ids[:, :-1]), self.model.wte.weight, ids[:, 1:])
        self.model.train()
        return summed_over_targets(losses_BT, windows)

    @torch.no_grad()
    def next_logits(self, ids: np.ndarray) -> Tensor:
        """Return the logits [V] of the token after int64 ids [T], the last ones that the model has positions for.

        Not collective: any rank may call it alone.
        """
        self.model.eval()
        ids_BT = torch.from_numpy(ids[None, -self.shape.num_positions :]).to(self.compute.device)
        logits_V = F.linear(self.model.hidden(ids_BT)[0, -1], self.model.wte.weight)
        self.model.train()
        return logits_V

    def weights(self) -> dict[str, Tensor]:
        """Return the fp32 master weights by name; where they are not sharded, views that change with the next step.

        Sharded, every rank must call it, and the tensors hold until the next step.
        """
        return self.layout.views(self._whole(self._masters))

    def load_weights(self, weights: Mapping[str, Tensor]) -> "Learner":
        """Copy fp32 weights in, by name."""
        for span in self.layout.spans:
            span.copy_part(weights[span.name], self._masters, self._part.start)
        self._refresh_computed()
        return self

    def load_optimizer_state(self, state: Mapping[str, Tensor], step: int) -> "Learner":
        """Copy moments in, by "first_moment/NAME" and "second_moment/NAME", and continue as after ``step`` steps."""
        moments = {"first": self.optimizer.first_moment, "second": self.optimizer.second_moment}
        for name, which, span in self.optimizer.named_moments():
            span.copy_part(state[name], moments[which], self._part.start)
        self.optimizer.set_num_steps(step)
        self.step = step
        return self

    def snapshot(self) -> Snapshot:
        """Return CPU copies of weights and optimizer state; the other ranks call this, or ``join_snapshot``."""
        weights, first, second = (self._whole(part).to("cpu", copy=True) for part in self._parts())
        moments = {"first": first, "second": second}
        state = {name: span.view(moments[which]) for name, which, span in self.optimizer.named_moments()}
        return Snapshot(self.layout.views(weights), state)

    def join_snapshot(self) -> None:
        """Give this rank's part of the state to one that takes a snapshot."""
        for part in self._parts():
            self._whole(part)

    def digest(self) -> str:
        """Return SHA-256 over names and bytes of all weights and moments, in the order of the layout."""
        return self.snapshot().digest()

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._masters, self.optimizer.first_moment, self.optimizer.second_moment

    @property
    def _is_sharded(self) -> bool:
        return len(self._cuts) > 2

    def _choose_cuts(self) -> tuple[int, ...]:
        num_parts = self.ranks.num_ranks if self.compute.sharding == "optimizer" else 1
        return self.layout.cuts(num_parts, whole_matrices=self.recipe.optimizer == "muon")

    def _choose_part(self) -> slice:
        """Return this rank's part of the flat buffers: all of them, if they are not sharded."""
        part = part_of(self.ranks.rank, self.ranks.num_ranks, self.compute.reduction) if self._is_sharded else 0
        return slice(self._cuts[part], self._cuts[part + 1])

    def _add_own(self, micro_batches: np.ndarray) -> Tensor:
        """Return the sum of this rank's contributions, flat, with the tail."""
        first = self.ranks.rank * micro_batches.shape[0]
        self._losses.clear()
        for index, windows in enumerate(micro_batches, start=first):
            self._sum.add(self._contribution(windows, index))
        return self._sum.take()

    def _add_over_ranks(self, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (this rank's part of the summed gradient, the norms of all its chunks, the summed tail)."""
        gradient, tail = total[: self.layout.num_elements], total[self.layout.num_elements :]
        if not self._is_sharded:
            sum_over_ranks(total, self.ranks, self.compute.reduction)
            return gradient, chunk_norms(gradient), tail
        gradient = scatter_sum(gradient, self._cuts, self.ranks, self.compute.reduction)
        shared = torch.cat((tail, tail.new_zeros(self.layout.num_chunks)))
        tail, norms = shared[:TAIL_ELEMENTS], shared[TAIL_ELEMENTS:]
        # Each norm is one rank's number and zeros of the others', so that adding them is exact.
        norms[self._part.start // CHUNK_ELEMENTS : self._part.stop // CHUNK_ELEMENTS] = chunk_norms(gradient)
        sum_over_ranks(shared, self.ranks, self.compute.reduction)
        return gradient, norms, tail

    def _contribution(self, windows: np.ndarray, index: int) -> list[Tensor]:
        """Return one micro-batch's own gradients and, last, its loss."""
        if self.shape.dropout:
            torch.manual_seed(dropout_key(self.seed, self.step, index))
        ids = ids_on(self.compute.device, windows)
        for parameter in self._parameters:
            parameter.grad = None  # adding into what is there would round by it
        loss = self._loss(ids, target_rows(windows))
        loss.backward()
        self._losses.append(loss.detach())
        return [*(_gradient(parameter) for parameter in self._parameters), loss.detach()]

    def _loss(self, ids: Tensor, rows: np.ndarray | None) -> Tensor:
        """Return the loss of a micro-batch over the targets in these rows, over all of them without rows."""
        hidden_BTC = self._layers(self.model.embeddings(ids[:, :-1]))
        head, targets_BT = self.model.wte.weight, ids[:, 1:]
        if rows is None:
            return next_token_loss(hidden_BTC, head, targets_BT, compiled=self.compute.compiled)
        return masked_next_token_loss(hidden_BTC, head, targets_BT, torch.from_numpy(rows).to(ids.device))

    def _contribution_views(self, buffer: Tensor) -> list[Tensor]:
        return [*(span.view(buffer) for span in self.layout.spans), buffer[self.layout.num_elements + _LOSS]]

    def _flat_buffer(self, dtype: torch.dtype, extra_elements: int = 0) -> Tensor:
        return torch.zeros(self.layout.num_elements + extra_elements, dtype=dtype, device=self.compute.device)

    def _refresh_computed(self) -> None:
        """Bring what the model computes with up to the master weights, those of the other ranks included."""
        if self.compute.dtype != torch.float32:
            self._computed[self._part].copy_(self._masters)
        if self._is_sharded:
            gather_parts(self._computed, self._cuts, self.ranks, self.compute.reduction)

    def _whole(self, part: Tensor) -> Tensor:
        """Return the flat buffer of which each rank holds a part, gathered in memory that the next step uses."""
        if not self._is_sharded:
            return part
        whole = self._sum.scratch()[: self.layout.num_elements]
        whole[self._part] = part
        gather_parts(whole, self._cuts, self.ranks, self.compute.reduction)
        return whole


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every parameter of a GPT takes part in the loss"
    return parameter.grad


def _place_parameters(model: GPT, layout: Layout, flat: Tensor) -> None:
    """Make every parameter of the model a view of the flat buffer."""
    for span in layout.spans:
        owner, _, name = span.name.rpartition(".")
        setattr(model.get_submodule(owner), name, nn.Parameter(span.view(flat)))
