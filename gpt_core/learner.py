"""One model, its optimizer, and the step: micro-batches in, weights changed.

Called by the training loop, by the benchmarks and by replays.  Invariant: in exact mode the
weights, the moments and the reported numbers after a step depend on (shape, recipe, seed,
batches, dtype, threads), and not on how many ranks shared the micro-batches.

Shapes: B sequences, T positions, V vocabulary; a window is T + 1 tokens.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gpt_core.errors import RunFailedError
from gpt_core.loss import next_token_loss, token_losses
from gpt_core.model import GPT, initial_values
from gpt_core.optimizer import FlatOptimizer, Layout, clip_, layout_of
from gpt_core.presets import ModelShape
from gpt_core.reduction import Ranks, TreeSum, sum_over_ranks
from gpt_core.schedule import Recipe
from gpt_core.training_plan import Reduction, check_batch_plan

# Behind the gradients in the flat buffer ride the loss and the number of ranks that want to stop:
# both are summed by the gradient's own messages. 16 elements keep the alignment.
TAIL_ELEMENTS = 16


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step saw: mean loss in nats, gradient norm before clipping, ranks that asked to stop."""

    loss: float
    grad_norm: float
    stop_votes: int


@dataclass(frozen=True, slots=True)
class Compute:
    """How to compute: everything here but the device's kind and the dtype leaves exact results alone."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    dtype: torch.dtype = torch.float32
    reduction: Reduction = "exact"
    compiled: bool = False


class Learner:
    """A GPT in training.

    Args:
        shape: The model.
        recipe: Optimizer and clipping.
        seed: Decides the starting weights and, with step and micro-batch, the dropout.
        compute: Device, dtype (bf16 keeps fp32 master weights), reduction, compilation.
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
            _make_cuda_deterministic()
        self.model = GPT(shape, device="meta")
        self.layout = layout_of(self.model)
        self._weights = self._flat_buffer()
        self._computed = self._weights.to(self.compute.dtype)  # the same tensor where the dtype is fp32
        _place_parameters(self.model, self.layout, self._computed)
        self.optimizer = FlatOptimizer(self.layout, self._weights, recipe)
        self._sum = TreeSum(lambda: self._flat_buffer(TAIL_ELEMENTS), self._contribution_views)
        self._parameters = [self.model.get_parameter(span.name) for span in self.layout.spans]
        self._losses: list[Tensor] = []
        self._hidden = torch.compile(self.model.hidden) if self.compute.compiled else self.model.hidden

    def initialise(self) -> "Learner":
        """Fill the weights with GPT-2's starting values for the seed."""
        for name, view in self.weights().items():
            view.copy_(initial_values(name, tuple(view.shape), self.shape.n_layer, self.seed))
        self._refresh_computed()
        return self

    def take_step(self, micro_batches: np.ndarray, share: float, *, stop: bool = False) -> StepReport:
        """Train on this rank's micro-batches and change the weights.

        Args:
            micro_batches: int64 [k, B, T + 1]; rank r has those from r k to (r + 1) k of the step.
            share: The schedule's share of the peak learning rate.
            stop: This rank's vote to stop after the step.

        Raises:
            RunFailedError: A loss or gradient that is not finite; the weights are left as they were.
            SettingsError: Ranks that cannot share these micro-batches.
        """
        count = micro_batches.shape[0] * self.ranks.num_ranks
        check_batch_plan(count, self.ranks.num_ranks, self.compute.reduction)
        total = self._summed_gradient(micro_batches, stop=stop)
        gradient, tail = total[: self.layout.num_elements], total[self.layout.num_elements :]
        norm = clip_(gradient, 1.0 / count, self.recipe.clip_norm)
        loss, votes, grad_norm = torch.stack((tail[0] / count, tail[1], norm)).tolist()
        if not (np.isfinite(loss) and np.isfinite(grad_norm)):
            raise RunFailedError(
                f"step {self.step}",
                f"loss {loss} and gradient norm {grad_norm}",
                "finite numbers",
                "lower the learning rate or look at this step's windows; the weights were not changed",
            )
        self.optimizer.step(gradient, share)
        self._refresh_computed()
        self.step += 1
        return StepReport(loss, grad_norm, round(votes))

    @property
    def micro_losses(self) -> list[float]:
        """The mean losses of this rank's micro-batches of the last step."""
        return [loss.item() for loss in self._losses]

    @torch.no_grad()
    def window_losses(self, windows: np.ndarray) -> np.ndarray:
        """Return each window's summed loss in nats, float64 [n], for int64 windows [n, T + 1]."""
        self.model.eval()
        ids = torch.from_numpy(windows).to(self.compute.device)
        losses_BT = token_losses(self.model.hidden(ids[:, :-1]), self.model.wte.weight, ids[:, 1:])
        self.model.train()
        return losses_BT.double().sum(dim=1).cpu().numpy()

    def weights(self) -> dict[str, Tensor]:
        """Return views of the fp32 master weights by name; they change with the next step."""
        return self.layout.views(self._weights)

    def load_weights(self, weights: Mapping[str, Tensor]) -> "Learner":
        """Copy fp32 weights in, by name."""
        with torch.no_grad():
            for name, view in self.weights().items():
                view.copy_(weights[name])
        self._refresh_computed()
        return self

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return views of the moments by "first_moment/NAME" and "second_moment/NAME"."""
        return dict(self.optimizer.state())

    def load_optimizer_state(self, state: Mapping[str, Tensor], step: int) -> "Learner":
        """Copy moments in and continue as after ``step`` steps."""
        for name, view in self.optimizer.state():
            view.copy_(state[name])
        self.optimizer.set_num_steps(step)
        self.step = step
        return self

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return CPU copies of (weights, optimizer state) that later steps leave alone."""
        weights, first, second = (
            flat.to("cpu", copy=True)
            for flat in (self._weights, self.optimizer.first_moment, self.optimizer.second_moment)
        )
        state = dict(self.optimizer.views(first, second))
        return self.layout.views(weights), state

    def digest(self) -> str:
        """Return SHA-256 over names and bytes of all weights and moments, in the order of the layout."""
        sha256 = hashlib.sha256()
        for name, tensor in self._everything():
            sha256.update(name.encode())
            sha256.update(tensor.cpu().contiguous().numpy().tobytes())
        return sha256.hexdigest()

    def _everything(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.weights().items()
        yield from self.optimizer.state()

    def _summed_gradient(self, micro_batches: np.ndarray, *, stop: bool) -> Tensor:
        first = self.ranks.rank * micro_batches.shape[0]
        self._losses.clear()
        for index, windows in enumerate(micro_batches, start=first):
            self._sum.add(self._contribution(windows, index))
        total = self._sum.take()
        total[self.layout.num_elements + 1] = float(stop)
        sum_over_ranks(total, self.ranks, self.compute.reduction)
        return total

    def _contribution(self, windows: np.ndarray, index: int) -> list[Tensor]:
        """Return one micro-batch's own gradients and, last, its loss."""
        if self.shape.dropout:
            torch.manual_seed(_dropout_key(self.seed, self.step, index))
        ids = torch.from_numpy(windows).to(self.compute.device, non_blocking=True)
        for parameter in self._parameters:
            parameter.grad = None  # adding into what is there would round by it
        loss = next_token_loss(self._hidden(ids[:, :-1]), self.model.wte.weight, ids[:, 1:])
        loss.backward()
        self._losses.append(loss.detach())
        return [*(_gradient(parameter) for parameter in self._parameters), loss.detach()]

    def _contribution_views(self, buffer: Tensor) -> list[Tensor]:
        return [*(span.view(buffer) for span in self.layout.spans), buffer[self.layout.num_elements]]

    def _flat_buffer(self, extra_elements: int = 0) -> Tensor:
        return torch.zeros(self.layout.num_elements + extra_elements, device=self.compute.device)

    def _refresh_computed(self) -> None:
        if self._computed is not self._weights:
            self._computed.copy_(self._weights)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every parameter of a GPT takes part in the loss"
    return parameter.grad


def _place_parameters(model: GPT, layout: Layout, flat: Tensor) -> None:
    """Make every parameter of the model a view of the flat buffer."""
    for span in layout.spans:
        owner, _, name = span.name.rpartition(".")
        setattr(model.get_submodule(owner), name, nn.Parameter(span.view(flat)))


def _dropout_key(seed: int, step: int, micro_batch: int) -> int:
    digest = hashlib.sha256(f"dropout/{seed}/{step}/{micro_batch}".encode()).digest()
    return int.from_bytes(digest[:8], "little") & (2**63 - 1)


def _make_cuda_deterministic() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True)
