"""The numbers a person watches a run by, and the guard against a loss that leaps."""

import resource
from dataclasses import dataclass

import torch

from gpt_core.model.precision import peak_flops
from gpt_core.model.product_rate import product_rate
from gpt_core.training import early_stopping
from gpt_core.training.observer import Metrics
from gpt_core.training.step import StepReport
from gpt_core.training.training_plan import TrainingPlan

# A loss is smoothed over about 50 steps; a spike is looked for once the mean means something.
SMOOTHING = 0.98
STEPS_BEFORE_SPIKES = 50


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a step went on all ranks together, and what part of it was spent waiting for data."""

    tokens_per_second: float
    data_wait_share: float


class StepMetrics:
    """The metrics of one step after another.

    Args:
        plan: Model, recipe and limit of a leap.
        device: Whose peak rate and memory are told.
        dtype: What is computed in.
        num_ranks: Devices that share the work.
    """

    def __init__(self, plan: TrainingPlan, device: torch.device, dtype: torch.dtype, num_ranks: int) -> None:
        self.last: Metrics = {}
        """Those of the last step, also where that is a checkpoint's."""
        self._plan = plan
        self._device = device
        self._dtype = dtype
        self._num_ranks = num_ranks
        self._peak_flops: float | None = None

    def find_peak(self) -> float | None:
        """Return the device's peak in FLOP/s, published, or on a CPU measured; steps then tell their share of it."""
        self._peak_flops = peak_flops(self._device)
        if self._device.type == "cpu":
            self._peak_flops = product_rate(self._plan.shape.n_embd, self._plan.micro_batch_tokens, self._dtype)
        return self._peak_flops

    def leap(self, step: int, loss: float) -> str | None:
        """Return what was expected of a loss that leaps, None for one that does not."""
        limit, smoothed = self._plan.max_loss_rise, self.last.get("smoothed_loss", loss)
        if limit is None or step <= STEPS_BEFORE_SPIKES or loss <= smoothed + limit:
            return None
        return f"at most {limit} above the smoothed loss {smoothed:.4f}"

    def take(self, report: StepReport, learning_rate_share: float, pace: Pace) -> None:
        """Make these the metrics of a step that is done."""
        smoothed = self.last.get("smoothed_loss", report.loss)
        metrics = {
            "loss": report.loss,
            "smoothed_loss": SMOOTHING * smoothed + (1 - SMOOTHING) * report.loss,
            "grad_norm": report.grad_norm,
            "learning_rate": self._plan.recipe.learning_rate * learning_rate_share,
            "tokens_per_second": pace.tokens_per_second,
            "peak_memory_bytes": float(_peak_memory_bytes(self._device)),
            **early_stopping.carried(self.last),
        }
        if self._peak_flops is not None:
            flops = pace.tokens_per_second * self._plan.shape.flops_a_token(self._plan.window_tokens)
            name = "mfu_palm_of_measured_products" if self._device.type == "cpu" else "mfu_palm"
            metrics[name] = flops / (self._peak_flops * self._num_ranks)
        metrics["data_wait_share"] = pace.data_wait_share
        self.last = metrics

    def take_validation_loss(self, loss: float) -> None:
        """Add what an evaluation found to the metrics of the step."""
        self.last[early_stopping.VALIDATION_LOSS] = loss
        self.last |= early_stopping.after_evaluation(self.last, loss)

    @property
    def are_best(self) -> bool:
        """Whether the step was evaluated as the best so far."""
        return early_stopping.is_best(self.last)


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
