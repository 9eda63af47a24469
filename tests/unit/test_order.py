"""Order: each window once an epoch, exact mixture, invertible, and equal for any number of readers."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.corpus.order import Cell, Cells, Mixture, Order, SourceStream, block_counts, num_windows
from gpt_core.errors import CorpusError

GPT3 = [0.60, 0.22, 0.08, 0.08, 0.03]


def small_order(block_windows: int | None = None, seed: int = 1) -> Order:
    sources = [SourceStream("web", 3, 10 * 40 + 7), SourceStream("books", 1, 10 * 13 + 1)]
    return Order(seed, window_tokens=10, sequences_per_step=8, sources=sources, block_windows=block_windows)


def drawn(order: Order, num_steps: int) -> list[Cell]:
    return [order.cell(step, row) for step in range(num_steps) for row in range(order.sequences_per_step)]


def test_windows_take_every_token_as_a_target_once_but_the_last_remainder() -> None:
    for num_tokens in range(1, 200):
        count = num_windows(num_tokens, window_tokens=7)
        targets = [token for window in range(count) for token in range(window * 7 + 1, window * 7 + 8)]
        assert targets == list(range(1, len(targets) + 1))
        assert 0 <= num_tokens - 1 - len(targets) < 7


@pytest.mark.parametrize("block_windows", [None, 6, 13])
def test_each_window_is_read_exactly_once_an_epoch(block_windows: int | None) -> None:
    read = Counter(drawn(small_order(block_windows), num_steps=40))
    for source, count in ((0, 40), (1, 13)):
        last_epoch = max(cell.epoch for cell in read if cell.source == source)
        assert last_epoch >= 3
        for epoch in range(last_epoch):
            assert {c.window for c in read if (c.source, c.epoch) == (source, epoch)} == set(range(count))
    assert set(read.values()) == {1}


def test_epochs_have_different_orders() -> None:
    cells = [cell for cell in drawn(small_order(), num_steps=40) if cell.source == 0]
    orders = {tuple(cell.window for cell in cells if cell.epoch == epoch) for epoch in range(4)}
    assert len(orders) == 4


def test_seeds_have_different_orders() -> None:
    assert drawn(small_order(seed=1), num_steps=3) != drawn(small_order(seed=2), num_steps=3)


@pytest.mark.parametrize("block_windows", [None, 6])
def test_the_inverse_finds_the_step_and_row_of_every_cell(block_windows: int | None) -> None:
    order = small_order(block_windows)
    for number, cell in enumerate(drawn(order, num_steps=30)):
        step, row = order.inverse(cell.source, cell.epoch, cell.window)
        assert (int(step), int(row)) == divmod(number, 8)


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 1023), st.sampled_from([None, 100_000]))
def test_the_inverse_holds_at_the_scale_of_15_trillion_tokens(step: int, row: int, block: int | None) -> None:
    sizes = [7_500_000_000_000, 3_600_000_000_000, 2_000_000_000_000, 1_500_000_000_000, 400_000_000_000]
    sources = [SourceStream(str(size), weight, size) for size, weight in zip(sizes, GPT3, strict=True)]
    order = Order(5, 2048, 1024, sources, block)
    cell = order.cell(step, row)
    steps, rows = order.inverse(cell.source, cell.epoch, cell.window)
    assert (int(steps), int(rows)) == (step, row)


def test_a_batch_does_not_depend_on_who_asks_for_which_rows() -> None:
    whole = small_order().cells(11)
    for num_readers in (1, 2, 4, 8):
        parts = [small_order().cells(11, np.arange(8)[reader::num_readers]) for reader in range(num_readers)]
        for reader, part in enumerate(parts):
            assert_equal(part, Cells(*(column[reader::num_readers] for column in columns(whole))))


def columns(cells: Cells) -> list[np.ndarray]:
    return [cells.sources, cells.epochs, cells.windows]


def assert_equal(one: Cells, other: Cells) -> None:
    for left, right in zip(columns(one), columns(other), strict=True):
        assert left.tolist() == right.tolist()


def test_the_mixture_is_exact_in_every_block() -> None:
    mixture = Mixture(GPT3, key=4)
    assert mixture.counts.tolist() == [60, 22, 8, 8, 3]
    sources, _ = mixture.draws(np.arange(101 * 50))
    for block in sources.reshape(50, 101):
        assert np.bincount(block, minlength=5).tolist() == [60, 22, 8, 8, 3]


def test_blocks_of_a_mixture_are_in_different_orders() -> None:
    sources, _ = Mixture(GPT3, key=4).draws(np.arange(101 * 50))
    assert len({tuple(block) for block in sources.reshape(50, 101)}) == 50


def test_each_draw_of_a_source_happens_once_and_in_its_block() -> None:
    sources, numbers = Mixture([2, 1], key=4).draws(np.arange(3000))
    assert sorted(numbers[sources == 0]) == list(range(2000))
    assert sorted(numbers[sources == 1]) == list(range(1000))


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([5.0], [1]),
        ([1, 1], [1, 1]),
        ([0.2, 0.3], [2, 3]),
        ([0.1, 0.2, 0.0], [1, 2, 0]),
        (GPT3, [60, 22, 8, 8, 3]),
        ([1e9 + 7, 1e9 + 9], [2**19, 2**19]),
        ([1e7 + 1, 1e7 + 1, 1e7 + 3], [349525, 349525, 349526]),
    ],
)
def test_blocks_have_the_smallest_whole_ratio_or_the_largest_remainder(weights: list[float], counts: list[int]) -> None:
    assert block_counts(weights) == counts


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=6))
def test_shares_of_a_block_are_the_weights_normalised(weights: list[float]) -> None:
    try:
        counts = block_counts(weights)
    except CorpusError:
        assert min(weights) / sum(weights) < 1e-6
        return
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count / sum(counts) - weight / sum(weights)) <= 1 / 2**20


@pytest.mark.parametrize("weights", [[0, 0], [], [-1, 2], [float("nan")], [float("inf"), 1], [1e-9, 1.5]])
def test_weights_that_cannot_be_met_are_refused(weights: list[float]) -> None:
    with pytest.raises(CorpusError, match="source weights"):
        block_counts(weights)


def test_a_source_shorter_than_a_window_is_refused_by_name() -> None:
    with pytest.raises(CorpusError, match=r"'tiny': found 10 tokens; expected at least one window, 11 tokens"):
        Order(0, 10, 1, [SourceStream("big", 1, 1000), SourceStream("tiny", 1, 10)])


def test_a_source_of_weight_zero_may_be_short_and_is_never_read() -> None:
    order = Order(0, 10, 4, [SourceStream("big", 1, 1000), SourceStream("tiny", 0, 10)])
    assert {cell.source for cell in drawn(order, 30)} == {0}
    with pytest.raises(ValueError, match="never read"):
        order.inverse(1, 0, 0)


def test_a_corpus_shorter_than_a_batch_is_refused() -> None:
    with pytest.raises(CorpusError, match="found 9 windows of 10 tokens; expected at least one batch, 10 windows"):
        Order(0, 10, 10, [SourceStream("small", 1, 91)])


@pytest.mark.parametrize(("step", "row"), [(-1, 0), (0, -1), (0, 8)])
def test_cells_outside_a_step_are_refused(step: int, row: int) -> None:
    with pytest.raises(IndexError):
        small_order().cell(step, row)


def test_block_shuffle_reads_each_block_in_one_run() -> None:
    order = Order(3, 10, 1, [SourceStream("only", 1, 10 * 100 + 1)], block_windows=30)
    windows = [order.cell(step, 0).window for step in range(100)]
    blocks = [window // 30 for window in windows]
    runs = [block for place, block in enumerate(blocks) if place == 0 or blocks[place - 1] != block]
    assert sorted(runs) == [0, 1, 2, 3]
    assert windows != sorted(windows)
