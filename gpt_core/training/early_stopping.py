"""When a run on few data ends before its last step: held-out losses that no longer fall.

Called by the training loop after each evaluation and before each step. What it knows travels in the metrics of
checkpoints, so that a resumed run ends where the one that was never interrupted does. Plain numbers, no torch.
"""

from collections.abc import Mapping

VALIDATION_LOSS = "validation_loss"
BEST_LOSS = "best_validation_loss"
WAITED = "evaluations_since_best"


def carried(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return what a step's metrics take over from those of the step before."""
    return {name: metrics[name] for name in (BEST_LOSS, WAITED) if name in metrics}


def after_evaluation(metrics: Mapping[str, float], validation_loss: float) -> dict[str, float]:
    """Return the best loss so far and the evaluations since, this one included; an equal loss is no better."""
    best = metrics.get(BEST_LOSS)
    if best is None or validation_loss < best:
        return {BEST_LOSS: validation_loss, WAITED: 0.0}
    return {BEST_LOSS: best, WAITED: metrics[WAITED] + 1.0}


def is_best(metrics: Mapping[str, float]) -> bool:
    """Return whether the step these metrics are of was evaluated and was the best so far."""
    return VALIDATION_LOSS in metrics and metrics.get(WAITED) == 0.0


def is_out_of_patience(metrics: Mapping[str, float], patience_evaluations: int | None) -> bool:
    """Return whether as many evaluations as given have passed since the best; None waits for ever."""
    return patience_evaluations is not None and metrics.get(WAITED, 0.0) >= patience_evaluations
