"""The loss on windows that are not trained on, shared by the ranks and the same bits on any number of them."""

import math
import warnings
from collections.abc import Callable, Container

import numpy as np
import torch

from gpt_core.corpus.order import Cells
from gpt_core.finetuning.masked_windows import num_targets
from gpt_core.finetuning.supervised_corpus import open_corpus
from gpt_core.training.reduction import Ranks, add_over_ranks
from gpt_core.training.training_plan import TrainingPlan


class HeldOut:
    """Evenly spaced windows of the validation split; none, with a warning, where it has none.

    Args:
        plan: Corpus, window and number of windows.
        splits: What the corpus is split into.
        ranks: This process among its peers.
        device: Where the ranks' results are added.
    """

    def __init__(self, plan: TrainingPlan, splits: Container[str], ranks: Ranks, device: torch.device) -> None:
        self._ranks = ranks
        self._device = device
        self._batch_sequences = plan.micro_batch_sequences
        self._windows = _choose_windows(plan, splits, warn=ranks.rank == 0)

    def __len__(self) -> int:
        return len(self._windows)

    def loss(self, window_losses: Callable[[np.ndarray], np.ndarray]) -> float:
        """Return the mean loss in nats a token.

        Args:
            window_losses: Returns each window's summed loss, float64 [n], for int64 windows [n, T + 1]. Every
                rank calls it equally often, since a sharded model needs all ranks for each.
        """
        count, size = len(self._windows), self._batch_sequences
        sums = np.zeros(count)
        for start in range(0, count, size * self._ranks.num_ranks):
            first = start + size * self._ranks.rank
            mine = self._windows[first : first + size]
            found = window_losses(mine if len(mine) else self._windows[:size])
            sums[first : first + size] = found[: len(mine)]
        # Each sum is one rank's number and zeros of the others', so that adding them is exact.
        total = math.fsum(add_over_ranks(sums, self._ranks, self._device))
        return total / num_targets(self._windows)


def _choose_windows(plan: TrainingPlan, splits: Container[str], *, warn: bool) -> np.ndarray:
    """Return int64 [n, T + 1]."""
    warn = warn and plan.evaluate_every_steps is not None
    if "validation" not in splits:
        if warn:
            warnings.warn(f"{plan.corpus} has no validation split: no validation loss", stacklevel=3)
        return np.zeros((0, plan.window_tokens + 1), np.int64)
    held_out = open_corpus(plan.corpus, "validation")
    cells = held_out.every_window(plan.window_tokens)
    if warn and not len(cells):
        short = f"{plan.corpus} has a validation split shorter than a window of {plan.window_tokens} tokens"
        warnings.warn(f"{short}: no validation loss", stacklevel=3)
    count = min(plan.evaluate_sequences, len(cells))
    chosen = np.arange(count) * len(cells) // max(count, 1)
    cells = Cells(cells.sources[chosen], cells.epochs[chosen], cells.windows[chosen])
    windows = held_out.windows(cells, plan.window_tokens)
    held_out.close()
    return windows
