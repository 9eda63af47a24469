"""Which windows of the corpus a step trains on, and this rank's share of them.

A step is found by the tokens trained on before it, so that a resume is arithmetic and a ramped
batch may cross the order's steps.  Rows are counted over the whole run.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np

from gpt_core.corpus.corpus import Corpus
from gpt_core.corpus.order import Cells
from gpt_core.corpus.shard_cache import RemoteShard
from gpt_core.corpus.shard_fetcher import ShardFetcher
from gpt_core.training.prefetch import Prefetcher
from gpt_core.training.reduction import Ranks
from gpt_core.training.training_plan import TrainingPlan


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
        self._order = corpus.order(
            plan.seed, plan.window_tokens, plan.batch_sequences, block_windows=plan.block_windows
        )

    def step_tokens(self, tokens: int) -> int:
        """Return the tokens of the step after ``tokens``, over all ranks."""
        return self._plan.ramp.micro_batches_at(tokens) * self._plan.micro_batch_tokens

    def step_rows(self, tokens: int) -> np.ndarray:
        """Return the rows of the step after ``tokens``, over all ranks."""
        start = tokens // self._plan.window_tokens
        return np.arange(start, start + self.step_tokens(tokens) // self._plan.window_tokens)

    def rows(self, tokens: int) -> np.ndarray:
        """Return this rank's rows of the step after ``tokens``."""
        return np.split(self.step_rows(tokens), self._ranks.num_ranks)[self._ranks.rank]

    def micro_batches(self, tokens: int) -> np.ndarray:
        """Return this rank's windows of the step after ``tokens``, int64 [micro-batches, sequences, T + 1]."""
        windows = np.concatenate(
            [self._corpus.windows(cells, self._plan.window_tokens) for cells in self._cells(tokens)]
        )
        return windows.reshape(-1, self._plan.micro_batch_sequences, windows.shape[1])

    @contextmanager
    def ahead(self, tokens: int, first_step: int, stop_step: int) -> Iterator[Prefetcher]:
        """Yield this rank's micro-batches of steps in a row, the first one after ``tokens``, read ahead."""
        positions = self._positions(tokens)
        fetcher = self._fetcher(tokens, first_step, stop_step)

        def make(step: int) -> np.ndarray:
            if fetcher:
                fetcher.reading(step)
            return self.micro_batches(next(positions))

        with fetcher or nullcontext(), Prefetcher(make, first_step, stop_step) as prefetcher:
            yield prefetcher

    def _fetcher(self, tokens: int, first_step: int, stop_step: int) -> ShardFetcher | None:
        """Return what fetches the shards of these steps, where they are kept in a cache."""
        if self._corpus.cache is None:
            return None
        positions = self._positions(tokens)

        def shards_of(_: int) -> Iterator[RemoteShard]:
            for cells in self._cells(next(positions)):
                yield from self._corpus.remote_shards(cells, self._plan.window_tokens)

        return ShardFetcher(self._corpus.cache, lambda step: list(shards_of(step)), first_step, stop_step)

    def _cells(self, tokens: int) -> Iterator[Cells]:
        """Yield what this rank reads in the step after ``tokens``, by the order's steps."""
        steps, rows = np.divmod(self.rows(tokens), self._plan.batch_sequences)
        for step in np.unique(steps):
            yield self._order.cells(int(step), rows[steps == step])

    def _positions(self, tokens: int) -> Iterator[int]:
        """Yield the tokens before each step, for ever."""
        while True:
            yield tokens
            tokens += self.step_tokens(tokens)
