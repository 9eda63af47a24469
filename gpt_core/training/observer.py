"""What the training loop tells its caller while it runs, and what it asks."""

from typing import Protocol

from gpt_core.storage import Location
from gpt_core.training.training_plan import TrainingPlan

Metrics = dict[str, float]


class Observer(Protocol):
    """What the loop tells its caller."""

    def on_start(self, plan: TrainingPlan, flops_a_second: float | None) -> None:
        """Take the plan, with the precision that "auto" means, and a device's peak rate; on rank 0 alone.

        Args:
            plan: What is trained from here on.
            flops_a_second: Published for a GPU, measured on a CPU; None where it is not known.
        """

    def on_metrics(self, step: int, tokens: int, metrics: Metrics) -> None:
        """Take the metrics after a step; called on every rank, with equal loss, norm and rate."""

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        """Take how the model goes on with a prompt after a step; called on rank 0 alone."""

    def before_checkpoint(self) -> None:
        """Make durable what was told: once the checkpoint stands, no step before it is told again; on rank 0 alone."""

    def on_checkpoint(self, path: Location, step: int, metrics: Metrics) -> None:
        """Take a checkpoint that is committed; called on rank 0 alone, on the training thread."""

    def should_stop(self) -> bool:
        """Say whether to checkpoint and return; asked before each step, one rank's yes is enough."""
        ...


class Silence:
    """An observer that does nothing."""

    def on_start(self, plan: TrainingPlan, flops_a_second: float | None) -> None:
        """Do nothing."""

    def on_metrics(self, step: int, tokens: int, metrics: Metrics) -> None:
        """Do nothing."""

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        """Do nothing."""

    def before_checkpoint(self) -> None:
        """Do nothing."""

    def on_checkpoint(self, path: Location, step: int, metrics: Metrics) -> None:
        """Do nothing."""

    def should_stop(self) -> bool:
        """Never stop."""
        return False
