"""Promises of gpt_core.training.schedule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.errors import SettingsError
from gpt_core.training.schedule import BatchRamp, Recipe, is_power_of_two, learning_rate_share

RECIPE = Recipe(warmup_tokens=100, decay_tokens=1100, min_learning_rate_share=0.1)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [(1, 0.01), (50, 0.5), (100, 1.0), (600, 0.55), (1100, 0.1), (5000, 0.1)],
)
def test_the_schedule_has_the_values_worked_out_by_hand(tokens, share):
    assert learning_rate_share(RECIPE, tokens, 9999) == pytest.approx(share)


def test_the_gpt3_schedule_is_at_its_peak_after_375_million_tokens_and_at_a_tenth_after_260_billion():
    recipe = Recipe(warmup_tokens=375_000_000, decay_tokens=260_000_000_000)
    assert learning_rate_share(recipe, 375_000_000, 300_000_000_000) == 1.0
    assert learning_rate_share(recipe, 260_000_000_000, 300_000_000_000) == 0.1
    assert learning_rate_share(recipe, 300_000_000_000, 300_000_000_000) == 0.1


def test_without_a_decay_length_the_floor_is_reached_with_the_last_token():
    recipe = Recipe(warmup_tokens=0, min_learning_rate_share=0.0)
    assert learning_rate_share(recipe, 500, 1000) == pytest.approx(0.5)
    assert learning_rate_share(recipe, 1000, 1000) == 0.0


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_after_the_warm_up_the_rate_never_rises(first, second):
    low, high = sorted((100 + first, 100 + second))
    assert learning_rate_share(RECIPE, low, 9999) >= learning_rate_share(RECIPE, high, 9999)


def test_a_warm_up_beyond_the_decay_is_refused():
    with pytest.raises(SettingsError, match=r"warmup_tokens.*at most decay_tokens, 10"):
        Recipe(warmup_tokens=11, decay_tokens=10)


@given(st.integers(0, 2000))
def test_a_ramped_batch_is_a_power_of_two_share_of_the_full_one(tokens):
    count = BatchRamp(48, start_micro_batches=3, ramp_tokens=1000).micro_batches_at(tokens)
    assert is_power_of_two(48 // count)
    assert 48 % count == 0
    assert count == 48 or tokens < 1000


def test_a_ramp_follows_the_line_from_below():
    ramp = BatchRamp(16, start_micro_batches=1, ramp_tokens=1500)
    assert [ramp.micro_batches_at(t) for t in (0, 99, 100, 299, 300, 700, 1499, 1500)] == [
        1,
        1,
        2,
        2,
        4,
        8,
        8,
        16,
    ]


def test_a_ramp_that_cannot_double_up_to_the_full_batch_is_refused():
    with pytest.raises(SettingsError, match="3 micro-batches"):
        BatchRamp(16, start_micro_batches=3, ramp_tokens=10)
