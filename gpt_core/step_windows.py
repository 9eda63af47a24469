"""Which windows of the corpus a step trains on, and this rank's share of them.

A step is found by the tokens trained on before it, so that a resume is arithmetic and a ramped
batch may cross the order's steps.  Rows are counted over the whole run.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from gpt_core.corpus import Corpus
from gpt_core.prefetch import Prefetcher
from gpt_core.reduction import Ranks
from gpt_core.training_plan import TrainingPlan


class StepWindows:
    """The micro-batches of one rank.

    Args:
        plan: Batch plan, ramp, seed.
        ranks: This process among its peers; they take aligned slices of a step.
        corpus: The split trained on.
    """

    def __init__(self, plan: TrainingPlan, ranks: Ranks, corpus: Corpus) -> None:
        self._plan = plan
        self._ranks = ranks
        self._corpus = corpus
        self._order = corpus.order(plan.seed, plan.window_tokens, plan.batch_sequences)

    def step_tokens(self, tokens: int) -> int:
        """Return the tokens of the step after ``tokens``, over all ranks."""
        return self._plan.ramp.micro_batches_at(tokens) * self._plan.micro_batch_tokens

    def rows(self, tokens: int) -> np.ndarray:
        """Return this rank's rows of the step after ``tokens``."""
        num_rows = self.step_tokens(tokens) // self._plan.window_tokens
        share = num_rows // self._ranks.num_ranks
        start = tokens // self._plan.window_tokens + self._ranks.rank * share
        return np.arange(start, start + share)

    def micro_batches(self, tokens: int) -> np.ndarray:
        """Return this rank's windows of the step after ``tokens``, int64 [micro-batches, sequences, T + 1]."""
        rows = self.rows(tokens)
        steps, rows_of_step = np.divmod(rows, self._plan.batch_sequences)
        pieces = [self._corpus.batch(self._order, int(s), rows_of_step[steps == s]) for s in np.unique(steps)]
        windows = np.concatenate(pieces)
        return windows.reshape(-1, self._plan.micro_batch_sequences, windows.shape[1])

    @contextmanager
    def ahead(self, tokens: int, first_step: int, stop_step: int) -> Iterator[Prefetcher]:
        """Yield this rank's micro-batches of steps in a row, the first one after ``tokens``, read ahead."""
        at = tokens

        def make(_: int) -> np.ndarray:
            nonlocal at
            micro_batches = self.micro_batches(at)
            at += self.step_tokens(at)
            return micro_batches

        with Prefetcher(make, first_step, stop_step) as prefetcher:
            yield prefetcher
