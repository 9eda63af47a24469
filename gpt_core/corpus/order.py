"""The order of training: which window of which source is row r of step s, and back, by arithmetic alone.

Trainers ask it for a batch, the tracer for the step that reads a document. A cell (step, row) is draw
``step * sequences_per_step + row``. Draws come in blocks in which each source has an exact number of slots,
in keyed order; the k-th draw of a source is position ``k % num_windows`` of its epoch ``k // num_windows``;
a keyed bijection takes the position to a window. Nothing is stored and nothing depends on the number of
readers, so seeking to any step costs the same.

A window is ``window_tokens + 1`` tokens of a source's concatenated stream (inputs and their targets),
``window_tokens`` after the one before: each token but the last remainder is a target exactly once an epoch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt_core.corpus.feistel import Permutation, derived_key
from gpt_core.errors import CorpusError

_MAX_BLOCK_SLOTS = 1 << 20

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SourceStream:
    """A source as the order sees it: its share of the draws relative to the others', and its length."""

    name: str
    weight: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Cell:
    """What one row of one step reads: a window of a source (by number), in an epoch of that source."""

    source: int
    epoch: int
    window: int


@dataclass(frozen=True, slots=True)
class Cells:
    """What some rows of a step read; int64 arrays of one length, the fields of `Cell`."""

    sources: Integers
    epochs: Integers
    windows: Integers

    def __len__(self) -> int:
        return len(self.sources)


def num_windows(num_tokens: int, window_tokens: int) -> int:
    """Return how many windows a stream has; each shares its last token with the next one's first."""
    return max(num_tokens - 1, 0) // window_tokens


class Order:
    """The order of one training run; pure, so any number of processes agree.

    Args:
        seed: Chooses the order; any integer.
        window_tokens: Training tokens of a row.
        sequences_per_step: Rows of a step over all workers.
        sources: Sources to draw from; those of weight 0 are never drawn.
        block_windows: If given, windows are shuffled as blocks of so many neighbours, then inside each block,
            so that a remote store is read in long runs; None shuffles all windows of an epoch freely.

    Raises:
        CorpusError: A source drawn from is shorter than a window, all of them together than a batch, or its
            weight is negative or too small to be met.
    """

    def __init__(
        self,
        seed: int,
        window_tokens: int,
        sequences_per_step: int,
        sources: Sequence[SourceStream],
        block_windows: int | None = None,
    ) -> None:
        self.seed = seed
        self.window_tokens = window_tokens
        self.sequences_per_step = sequences_per_step
        self.sources = tuple(sources)
        self.num_windows = [num_windows(source.num_tokens, window_tokens) for source in self.sources]
        self._check_lengths()
        self.mixture = Mixture([source.weight for source in self.sources], derived_key("mixture", seed))
        self._shuffles = [
            _window_shuffle(count, derived_key("windows", seed, source.name), block_windows)
            for source, count in zip(self.sources, self.num_windows, strict=True)
        ]

    def cells(self, step: int, rows: ArrayLike | None = None) -> Cells:
        """Return what the rows of a step read: all ``sequences_per_step`` of them, or those given."""
        numbers = np.arange(self.sequences_per_step) if rows is None else np.asarray(rows, np.int64)
        if step < 0 or (numbers.size and (numbers.min() < 0 or numbers.max() >= self.sequences_per_step)):
            raise IndexError(f"step {step}, rows {numbers} of {self.sequences_per_step}")
        sources, draws = self.mixture.draws(step * self.sequences_per_step + numbers)
        epochs, windows = np.zeros_like(draws), np.zeros_like(draws)
        for source in np.unique(sources):
            chosen = sources == source
            epochs[chosen], positions = np.divmod(draws[chosen], self.num_windows[source])
            windows[chosen] = self._shuffles[source].forward(positions, epochs[chosen])
        return Cells(sources, epochs, windows)

    def cell(self, step: int, row: int) -> Cell:
        """Return what one row of one step reads."""
        cells = self.cells(step, [row])
        return Cell(int(cells.sources[0]), int(cells.epochs[0]), int(cells.windows[0]))

    def inverse(self, source: int, epochs: ArrayLike, windows: ArrayLike) -> tuple[Integers, Integers]:
        """Return (steps, rows) that read the windows of a source in the epochs (broadcast)."""
        if not self.mixture.counts[source]:
            raise ValueError(f"source {self.sources[source].name!r} has weight 0 and is never read")
        positions = self._shuffles[source].inverse(windows, epochs)
        draws = np.asarray(epochs, np.int64) * self.num_windows[source] + positions
        return np.divmod(self.mixture.inverse(source, draws), self.sequences_per_step)

    def _check_lengths(self) -> None:
        for source, count in zip(self.sources, self.num_windows, strict=True):
            if source.weight > 0 and count < 1:
                raise CorpusError(
                    f"source {source.name!r}",
                    f"{source.num_tokens} tokens",
                    f"at least one window, {self.window_tokens + 1} tokens",
                    "add text, take a shorter context, or give the source weight 0",
                )
        drawn = [count for source, count in zip(self.sources, self.num_windows, strict=True) if source.weight > 0]
        if sum(drawn) < self.sequences_per_step:
            raise CorpusError(
                "corpus",
                f"{sum(drawn)} windows of {self.window_tokens} tokens",
                f"at least one batch, {self.sequences_per_step} windows",
                "add text, or take a shorter context or a smaller batch",
            )


class Mixture:
    """Which source each draw is from: exact in every block of ``block_slots`` draws, in keyed order.

    Args:
        weights: Share of each source relative to the others'; they need not sum to 1.
        key: Chooses the order inside the blocks.

    Raises:
        CorpusError: A weight is negative or not finite, all are 0, or one is too small to get a slot.
    """

    def __init__(self, weights: Sequence[float], key: int) -> None:
        self.counts = np.array(block_counts(weights), np.int64)
        self.block_slots = int(self.counts.sum())
        self._starts = np.cumsum(self.counts) - self.counts
        self._ends = np.cumsum(self.counts)
        self._slots = Permutation(self.block_slots, key)

    def draws(self, numbers: ArrayLike) -> tuple[Integers, Integers]:
        """Return, for draws of the whole run, their sources and their numbers among their source's draws."""
        blocks, slots = np.divmod(np.asarray(numbers, np.int64), self.block_slots)
        places = self._slots.forward(slots, blocks)
        sources = np.searchsorted(self._ends, places, side="right")
        return sources, blocks * self.counts[sources] + places - self._starts[sources]

    def inverse(self, source: int, draws: ArrayLike) -> Integers:
        """Return the number in the whole run of a source's draws."""
        blocks, ranks = np.divmod(np.asarray(draws, np.int64), self.counts[source])
        slots = self._slots.inverse(ranks + self._starts[source], blocks)
        return blocks * self.block_slots + slots


def block_counts(weights: Sequence[float]) -> list[int]:
    """Return the slots of each source in a block, as exact as the weights are written.

    Weights as decimals have a smallest whole ratio: GPT-3's 0.60, 0.22, 0.08, 0.08, 0.03, which sum to 1.01,
    make blocks of 60 + 22 + 8 + 8 + 3 = 101 draws. Where that would pass 2**20 draws, blocks have 2**20 and
    counts are apportioned by largest remainder.
    """
    ratios = [_exact(weight) for weight in weights]
    if not sum(ratios):
        raise CorpusError("source weights", f"{list(weights)}", "one above 0", "give a source a positive weight")
    unit = Fraction(math.gcd(*(r.numerator for r in ratios)), math.lcm(*(r.denominator for r in ratios)))
    shares = [ratio / unit for ratio in ratios]
    if sum(shares) > _MAX_BLOCK_SLOTS:
        return _apportioned([share / sum(shares) * _MAX_BLOCK_SLOTS for share in shares])
    return [int(share) for share in shares]


def _exact(weight: float) -> Fraction:
    if not (math.isfinite(weight) and weight >= 0):
        raise CorpusError("source weights", str(weight), "a number of 0 or more", "correct the weight")
    return Fraction(repr(float(weight)))


def _apportioned(quotas: Sequence[Fraction]) -> list[int]:
    """Return whole numbers with the quotas' sum by largest remainder (Hamilton's method)."""
    counts = [math.floor(quota) for quota in quotas]
    missing = _MAX_BLOCK_SLOTS - sum(counts)
    by_remainder = sorted(range(len(quotas)), key=lambda index: (counts[index] - quotas[index], index))
    for index in by_remainder[:missing]:
        counts[index] += 1
    for quota, count in zip(quotas, counts, strict=True):
        if quota and not count:
            found, least = f"a share of {float(quota / _MAX_BLOCK_SLOTS):.3g}", f"{1 / _MAX_BLOCK_SLOTS:.3g}"
            raise CorpusError("source weights", found, f"at least {least}", "raise the weight, or set it to 0")
    return counts


class _FreeShuffle:
    """Windows of an epoch in one keyed order."""

    def __init__(self, count: int, key: int) -> None:
        self._windows = Permutation(max(count, 1), key)

    def forward(self, positions: Integers, epochs: ArrayLike) -> Integers:
        return self._windows.forward(positions, epochs)

    def inverse(self, windows: ArrayLike, epochs: ArrayLike) -> Integers:
        return self._windows.inverse(windows, epochs)


class _BlockShuffle:
    """Blocks of neighbouring windows in keyed order, and the windows of each in a keyed order of its own.

    The last block may be short; whatever its place in the order, the positions after it move up.
    """

    def __init__(self, count: int, key: int, block_windows: int) -> None:
        self._size = block_windows
        self._num_blocks = -(-count // block_windows)
        self._short = self._num_blocks * block_windows - count  # windows the last block lacks
        self._blocks = Permutation(self._num_blocks, derived_key("blocks", key))
        inside = derived_key("inside blocks", key)
        self._full = Permutation(block_windows, inside)
        self._last = Permutation(block_windows - self._short, inside)

    def forward(self, positions: Integers, epochs: ArrayLike) -> Integers:
        positions, epochs = np.broadcast_arrays(np.asarray(positions, np.int64), np.asarray(epochs, np.int64))
        place_of_last = self._blocks.inverse(np.full(epochs.shape, self._num_blocks - 1), epochs)
        is_after = positions >= (place_of_last + 1) * self._size - self._short
        places, inside = np.divmod(positions + is_after * self._short, self._size)
        blocks = self._blocks.forward(places, epochs)
        return blocks * self._size + self._inside(blocks, inside, epochs, forward=True)

    def inverse(self, windows: ArrayLike, epochs: ArrayLike) -> Integers:
        windows, epochs = np.broadcast_arrays(np.asarray(windows, np.int64), np.asarray(epochs, np.int64))
        blocks, inside = np.divmod(windows, self._size)
        place_of_last = self._blocks.inverse(np.full(epochs.shape, self._num_blocks - 1), epochs)
        places = self._blocks.inverse(blocks, epochs)
        is_after = places > place_of_last
        inside = self._inside(blocks, inside, epochs, forward=False)
        return places * self._size + inside - is_after * self._short

    def _inside(self, blocks: Integers, values: Integers, epochs: Integers, *, forward: bool) -> Integers:
        tweaks = epochs * self._num_blocks + blocks
        result = np.empty_like(values)
        for is_last, shuffle in ((False, self._full), (True, self._last)):
            chosen = (blocks == self._num_blocks - 1) == is_last
            turn = shuffle.forward if forward else shuffle.inverse
            result[chosen] = turn(values[chosen], tweaks[chosen])
        return result


def _window_shuffle(count: int, key: int, block_windows: int | None) -> _FreeShuffle | _BlockShuffle:
    if block_windows is None or count <= block_windows:
        return _FreeShuffle(count, key)
    return _BlockShuffle(count, key, block_windows)
