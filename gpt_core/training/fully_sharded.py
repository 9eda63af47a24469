"""A model too large for one device: weights, gradients and moments cut over the ranks (FSDP2).

Does for the training loop what ``learner.Learner`` does, with the same step, dropout, recipe and
checkpoints, but each rank keeps some rows of every tensor only, and a block's weights are gathered
while it computes.  The library sums gradients block by block, in an order that depends on the
ranks: results equal replicated training's to rounding, not to the bit.

Every method but ``micro_losses`` is collective: all ranks call it, in the same order.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from gpt_core.finetuning.masked_loss import masked_next_token_loss, summed_over_targets
from gpt_core.finetuning.masked_windows import is_masked, num_targets, target_rows, unmasked
from gpt_core.model.gpt import GPT, initial_values
from gpt_core.model.loss import next_token_loss, token_losses
from gpt_core.model.presets import ModelShape
from gpt_core.training.layout import layout_of
from gpt_core.training.learner import Snapshot
from gpt_core.training.reduction import Ranks
from gpt_core.training.schedule import Recipe
from gpt_core.training.step import NO_VOTES, Compute, StepReport, Votes, checked_report, dropout_key, ids_on
from gpt_core.training.training_plan import check_batch_plan, check_sharding


class FullyShardedLearner:
    """A GPT in training of which each rank holds a part.

    Args:
        shape: The model.
        recipe: AdamW and clipping.
        seed: As for ``Learner``.
        compute: Device, dtype (bf16 keeps fp32 master weights and sums gradients in fp32), compilation.
        ranks: This process among its peers, which a process group joins.

    Raises:
        SettingsError: Exact reduction, or Muon.
    """

    def __init__(self, shape: ModelShape, recipe: Recipe, seed: int, compute: Compute, ranks: Ranks) -> None:
        check_sharding("full", compute.reduction, recipe.optimizer)
        self.shape = shape
        self.recipe = recipe
        self.seed = seed
        self.compute = compute
        self.ranks = ranks
        self.step = 0
        model = GPT(shape, device="meta")
        model.recomputes_blocks = compute.activation_checkpointing
        self._objective = _Objective(model, compiled=compute.compiled)
        self._names = [span.name for span in layout_of(model).spans]
        _shard(self._objective, compute, ranks)
        self._objective.to_empty(device=compute.device)
        self._parameters = {name: _as_dtensor(model.get_parameter(name)) for name in self._names}
        self._adamw = self._make_adamw()
        self._losses: list[Tensor] = []

    def initialise(self) -> "FullyShardedLearner":
        """Fill the weights with GPT-2's starting values for the seed."""
        for name, parameter in self._parameters.items():
            self._fill(parameter, initial_values(name, tuple(parameter.shape), self.shape.n_layer, self.seed))
        return self

    def take_step(self, micro_batches: np.ndarray, share: float, votes: Votes = NO_VOTES) -> StepReport:
        """Train on this rank's micro-batches and change the weights; see ``Learner.take_step``."""
        num_ranks = self.ranks.num_ranks
        count = micro_batches.shape[0] * num_ranks
        check_batch_plan(count, num_ranks, self.compute.reduction)
        self._add_gradients(micro_batches)
        loss, square, stop_votes, save_votes, targets = self._sum_over_ranks(micro_batches, votes).unbind()
        if is_masked(micro_batches):
            count = targets.item() / micro_batches[0, :, 1:].size
        scale = num_ranks / count  # the library has divided by the ranks
        report = checked_report(self.step, torch.stack((loss / count, square.sqrt() * scale, stop_votes, save_votes)))
        limit = min(1.0, self.recipe.clip_norm / (report.grad_norm + 1e-6))
        for gradient in self._gradients():
            gradient.mul_(limit * scale)
        for group in self._adamw.param_groups:
            group["lr"] = self.recipe.learning_rate * share
        self._adamw.step()
        self.step += 1
        return report

    @property
    def micro_losses(self) -> list[float]:
        """The mean losses of this rank's micro-batches of the last step."""
        return [loss.item() for loss in self._losses]

    @torch.no_grad()
    def window_losses(self, windows: np.ndarray) -> np.ndarray:
        """Return each window's summed loss in nats over its targets, float64 [n], for int64 windows [n, T + 1]."""
        self._objective.eval()
        losses_BT = self._objective(torch.from_numpy(unmasked(windows)).to(self.compute.device))
        self._objective.train()
        assert isinstance(self._objective, FSDPModule), "sharded when made"
        self._objective.reshard()  # weights may be loaded before the next step gathers them
        return summed_over_targets(losses_BT, windows)

    def load_weights(self, weights: Mapping[str, Tensor]) -> "FullyShardedLearner":
        """Copy fp32 weights in, by name."""
        for name, parameter in self._parameters.items():
            self._fill(parameter, weights[name])
        return self

    def load_optimizer_state(self, state: Mapping[str, Tensor], step: int) -> "FullyShardedLearner":
        """Copy moments in, by "first_moment/NAME" and "second_moment/NAME", and continue as after ``step`` steps."""
        for name, moment in self._moments():
            self._fill(moment, state[name])
        for values in self._adamw.state.values():
            values["step"].fill_(step)
        self.step = step
        return self

    def snapshot(self) -> Snapshot:
        """Return CPU copies of weights and optimizer state; the other ranks call this, or ``join_snapshot``."""
        weights, state = (
            {name: tensor.full_tensor().detach().to("cpu", copy=True) for name, tensor in tensors}
            for tensors in self._tensors()
        )
        return Snapshot(weights, state)

    def join_snapshot(self) -> None:
        """Give this rank's part of the state to one that takes a snapshot, a tensor at a time."""
        for tensors in self._tensors():
            for _, tensor in tensors:
                tensor.full_tensor()

    def _tensors(self) -> tuple[Iterable[tuple[str, DTensor]], Iterable[tuple[str, DTensor]]]:
        return self._parameters.items(), self._moments()

    def _add_gradients(self, micro_batches: np.ndarray) -> None:
        """Add up the micro-batches' gradients, each averaged over the ranks, in the parameters."""
        self._adamw.zero_grad()
        self._losses.clear()
        for index, windows in enumerate(micro_batches, start=self.ranks.rank * micro_batches.shape[0]):
            if self.shape.dropout:
                torch.manual_seed(dropout_key(self.seed, self.step, index))
            rows = target_rows(windows)
            loss = self._objective(
                ids_on(self.compute.device, windows),
                None if rows is None else torch.from_numpy(rows).to(self.compute.device),
            )
            loss.backward()
            self._losses.append(loss.detach())

    def _sum_over_ranks(self, micro_batches: np.ndarray, votes: Votes) -> Tensor:
        """Return the sums of (loss, squared gradients, votes to stop, votes to save, targets), fp32."""
        squares = torch.stack([gradient.square().sum() for gradient in self._gradients()])
        told = [float(votes.stop), float(votes.save), float(num_targets(micro_batches))]
        numbers = torch.stack((torch.stack(self._losses).sum(), squares.sum()))
        numbers = torch.cat((numbers, torch.tensor(told, device=self.compute.device)))
        dist.all_reduce(numbers, group=self.ranks.group)
        return numbers

    def _gradients(self) -> list[Tensor]:
        """Return this rank's rows of all gradients."""
        gradients = [parameter.grad for parameter in self._parameters.values()]
        return [_as_dtensor(gradient).to_local() for gradient in gradients if gradient is not None]

    def _make_adamw(self) -> torch.optim.AdamW:
        recipe = self.recipe
        parameters = list(self._parameters.values())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        betas = (recipe.beta1, recipe.beta2)
        adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=recipe.epsilon, fused=True)
        for parameter in parameters:
            adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=self.compute.device),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
        return adamw

    def _moments(self) -> Iterator[tuple[str, DTensor]]:
        for name, parameter in self._parameters.items():
            state = self._adamw.state[parameter]
            yield f"first_moment/{name}", state["exp_avg"]
            yield f"second_moment/{name}", state["exp_avg_sq"]

    @torch.no_grad()
    def _fill(self, tensor: DTensor, whole: Tensor) -> None:
        """Copy this rank's rows out of a whole tensor; there may be none."""
        rows = whole.chunk(self.ranks.num_ranks)
        if self.ranks.rank < len(rows):
            tensor.to_local().copy_(rows[self.ranks.rank])


class _Objective(nn.Module):
    """A GPT with its loss in one forward pass, while the embedding, which is the head too, is gathered."""

    def __init__(self, model: GPT, *, compiled: bool) -> None:
        super().__init__()
        self.model = model
        self.compiled = compiled

    def forward(self, windows_BT: Tensor, rows_N: Tensor | None = None) -> Tensor:
        """Return, in training, the mean loss, or the masked one of ``rows_N``; else every token's loss, [B, T]."""
        hidden_BTC, head, targets_BT = self.model.hidden(windows_BT[:, :-1]), self.model.wte.weight, windows_BT[:, 1:]
        if not self.training:
            return token_losses(hidden_BTC, head, targets_BT)
        if rows_N is None:
            return next_token_loss(hidden_BTC, head, targets_BT, compiled=self.compiled)
        return masked_next_token_loss(hidden_BTC, head, targets_BT, rows_N)


def _shard(objective: _Objective, compute: Compute, ranks: Ranks) -> None:
    """Cut every block's tensors over the ranks, and those outside of blocks."""
    mesh = _mesh(compute.device.type, ranks)
    policy = MixedPrecisionPolicy(param_dtype=compute.dtype, reduce_dtype=torch.float32)
    for block in objective.model.h:
        if compute.compiled:
            block.compile()  # pyright: ignore[reportCallIssue]
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy)


def _mesh(device_type: str, ranks: Ranks) -> DeviceMesh:
    if ranks.group is not None:
        return DeviceMesh.from_group(ranks.group, device_type)
    return init_device_mesh(device_type, (ranks.num_ranks,))


def _as_dtensor(tensor: Tensor) -> DTensor:
    assert isinstance(tensor, DTensor), "every parameter and gradient is sharded"
    return tensor
