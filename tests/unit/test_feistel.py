"""Permutations: bijective at every size, undone by their inverse, and as unordered as a true shuffle."""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gpt_core.corpus.feistel import Permutation

Shuffle = Callable[[int], np.ndarray]
SIZE = 100_003


def assert_bijective(size: int, key: int, tweak: int) -> None:
    permutation = Permutation(size, key)
    elements = permutation.forward(np.arange(size), tweak)
    assert (np.bincount(elements, minlength=size) == 1).all()
    assert (permutation.inverse(elements, tweak) == np.arange(size)).all()


def test_every_small_size_is_a_bijection() -> None:
    for size in range(1, 600):
        assert_bijective(size, key=3, tweak=size)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 50_000), st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_any_size_key_and_tweak_make_a_bijection(size: int, key: int, tweak: int) -> None:
    assert_bijective(size, key, tweak)


@pytest.mark.parametrize("size", [65_537, 999_999, 1_000_000])
def test_large_sizes_are_bijections(size: int) -> None:
    assert_bijective(size, key=1, tweak=0)


@settings(deadline=None)
@given(st.integers(1, 2**62), st.integers(0, 2**64 - 1), st.data())
def test_the_inverse_undoes_any_size(size: int, key: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, size - 1))
    permutation = Permutation(size, key)
    element = permutation.forward(position)
    assert 0 <= element < size
    assert permutation.inverse(element) == position


def test_a_sample_of_an_epoch_of_3_66_billion_windows_is_distinct_and_inverts() -> None:
    size = 3_660_000_000
    positions = np.unique(np.random.default_rng(0).integers(0, size, 50_000))
    permutation = Permutation(size, key=9)
    elements = permutation.forward(positions, tweaks=4)
    assert len(np.unique(elements)) == len(positions)
    assert (permutation.inverse(elements, 4) == positions).all()
    assert stats.kstest(elements / size, "uniform").pvalue > 1e-4


def test_one_call_with_many_tweaks_equals_many_calls_with_one() -> None:
    permutation = Permutation(1000, key=2)
    tweaks = np.arange(50)
    together = permutation.forward(np.full(50, 17), tweaks)
    assert together.tolist() == [int(permutation.forward(17, int(tweak))) for tweak in tweaks]


def test_every_order_of_five_elements_is_equally_frequent_over_keys() -> None:
    num_keys = 24_000
    permutation = Permutation(5, key=7)
    columns = [permutation.forward(np.full(num_keys, place), np.arange(num_keys)) for place in range(5)]
    orders, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    assert [tuple(order) for order in orders] == list(permutations(range(5)))
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("size", [0, 2**62 + 1])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"2\*\*62"):
        Permutation(size, key=0)


@pytest.mark.parametrize("position", [-1, 10])
def test_positions_out_of_range_are_refused(position: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.9"):
        Permutation(10, key=0).forward(position)


def true_shuffle(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(SIZE)


def feistel(seed: int) -> np.ndarray:
    return Permutation(SIZE, key=seed).forward(np.arange(SIZE), tweaks=seed)


def affine(seed: int) -> np.ndarray:
    factor, shift = np.random.default_rng(seed).integers(1, SIZE, 2)  # SIZE is prime: a bijection
    return (np.arange(SIZE) * factor + shift) % SIZE


def sorted_corpus_score(order: np.ndarray) -> float:
    """Return the standard score of how evenly batches of 128 sample ten phases of a sorted corpus."""
    phases, batches = order * 10 // SIZE, np.arange(SIZE) // 128
    table = np.zeros((SIZE // 128, 10))
    inside = batches < len(table)
    np.add.at(table, (batches[inside], phases[inside]), 1)
    statistic = ((table - 12.8) ** 2 / 12.8).sum()
    freedom = 9 * len(table) * (1 - 128 / SIZE)
    return (statistic - freedom) / np.sqrt(2 * freedom)


def neighbour_score(order: np.ndarray) -> float:
    """Return the standard score of the chi-square of distances between successive elements."""
    counts = np.bincount(np.diff(order) % SIZE * 100 // SIZE, minlength=100)
    return (stats.chisquare(counts).statistic - 99) / np.sqrt(2 * 99)


def correlation_score(order: np.ndarray) -> float:
    """Return the standard score of the correlation between successive elements."""
    return float(np.corrcoef(order[:-1], order[1:])[0, 1]) * np.sqrt(SIZE)


def worst(score: Callable[[np.ndarray], float], shuffle: Shuffle) -> float:
    return max(abs(score(shuffle(seed))) for seed in range(5))


@pytest.mark.parametrize("score", [sorted_corpus_score, neighbour_score, correlation_score])
def test_a_permutation_passes_where_a_true_shuffle_does_and_an_affine_map_fails(
    score: Callable[[np.ndarray], float],
) -> None:
    assert worst(score, true_shuffle) < 5
    assert worst(score, feistel) < 5
    assert worst(score, affine) > 10
