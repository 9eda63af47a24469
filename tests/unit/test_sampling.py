"""Promises of gpt_core.generation.sampling: exact draws, keyed by a counter, the same in any company."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.generation.request import GenerationRequest, Sampling
from gpt_core.generation.sampling import (
    draw,
    draw_key,
    draws_without_waiting,
    penalise,
    plan_draws,
    token_logprobs,
    top_candidates,
    uniform,
)
from tests.reference import sampling_plain

VOCABULARY = 640


def some_logits(num_rows, seed=0, spread=3.0, vocabulary=VOCABULARY, real=None):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocabulary, generator=generator) * spread
    logits[:, real or vocabulary :] = -torch.inf
    return logits


def plan(sample=0, seed=0, request="r", **sampling):
    return plan_draws(GenerationRequest(request, (1,), Sampling(seed=seed, **sampling)), sample)


samplings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-30, 0.3, 1.0, 2.5, 1e30]),
        "top_k": st.sampled_from([None, 1, 2, 40, 128, 129, 600, 5000, 2**63]),
        "top_p": st.sampled_from([None, 0.01, 0.5, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([None, 0.0, 0.05, 1.0]),
    }
)


def test_uniform_numbers_are_the_published_splitmix64_sequence():
    # The first outputs for seed 1234567, as listed with Vigna's public-domain reference code.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    found = uniform(torch.full((4,), 1234567), torch.arange(4))
    assert found.tolist() == [(output >> 11) / 2**53 for output in published]


@given(key=st.integers(-(2**63), 2**63 - 1), position=st.integers(0, 2**20))
@settings(max_examples=50)
def test_uniform_numbers_agree_with_whole_number_arithmetic_in_python(key, position):
    assert uniform(torch.tensor([key]), torch.tensor([position])).item() == sampling_plain.uniform(key, position)


def test_keys_differ_by_seed_request_and_sample():
    keys = {draw_key(seed, name, sample) for seed in range(5) for name in ("a", "b", "0/1") for sample in range(5)}
    assert len(keys) == 75


@given(seed=st.integers(0, 1000), sampling=samplings)
@settings(max_examples=60)
def test_each_draw_is_the_inverse_cdf_of_the_filtered_distribution(seed, sampling):
    logits = some_logits(6, seed, real=500)
    row_plan = plan(seed=seed, **sampling)
    found = draw(logits, [row_plan] * 6, list(range(6))).tolist()
    filters = {name: value for name, value in sampling.items() if name != "temperature"}
    for row in range(6):
        values = logits[row, :500].tolist()
        if row_plan.kind == "greedy":
            assert found[row] == values.index(max(values))
            continue
        u = sampling_plain.uniform(row_plan.key, row)
        expected = sampling_plain.draw(
            values, u, row_plan.kind == "ranked", temperature=sampling["temperature"], **filters
        )
        assert found[row] == expected


@given(company=st.lists(samplings, min_size=1, max_size=12), me=samplings, place=st.integers(0, 12))
@settings(max_examples=60)
def test_a_row_draws_the_same_token_in_any_company(company, me, place):
    mine = some_logits(1, 99)
    alone = draw(mine, [plan(**me)], [7]).item()
    place = min(place, len(company))
    others = some_logits(len(company), 5, spread=1.0)
    logits = torch.cat([others[:place], mine, others[place:]])
    plans = [plan(request=f"{i}", **sampling) for i, sampling in enumerate(company)]
    plans.insert(place, plan(**me))
    assert draw(logits, plans, [7] * len(plans))[place].item() == alone


@pytest.mark.parametrize(
    "sampling", [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1, "temperature": 1.5}, {"top_k": 9, "top_p": 0.7}]
)
def test_drawn_frequencies_follow_the_distribution(sampling):
    logits = some_logits(1, 3, spread=1.5, vocabulary=128, real=12)
    num_draws = 20_000
    plans = [plan(**sampling)] * num_draws
    tokens = draw(logits.expand(num_draws, -1), plans, list(range(num_draws)))
    counts = np.bincount(tokens.numpy(), minlength=12)
    p = sampling_plain.kept_probabilities(logits[0, :12].tolist(), **sampling)
    assert counts[12:].sum() == 0
    assert counts[:12][p == 0].sum() == 0
    kept = p > 0
    chi_square = ((counts[:12][kept] - num_draws * p[kept]) ** 2 / (num_draws * p[kept])).sum()
    freedom = max(kept.sum() - 1, 1)
    # Wilson and Hilferty 1931: (chi^2/k)^(1/3) is normal; five sigma for a fixed seed.
    normal = ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert normal < 5


def test_equal_logits_are_ranked_by_id():
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 100] = -0.0
    logits[0, 300:] = -1.0
    values, ids = top_candidates(logits, 3)
    assert ids.tolist() == [[0, 1, 2]]
    assert values.tolist() == [[0.0, 0.0, 0.0]]
    drawn = {draw(logits, [plan(top_k=2)], [position]).item() for position in range(40)}
    assert drawn == {0, 1}


@given(seed=st.integers(0, 100), count=st.sampled_from([1, 3, 20, 128, 129, 2048, 5120]), ties=st.booleans())
@settings(max_examples=30)
def test_candidates_found_in_two_levels_are_those_of_a_full_sort(seed, count, ties):
    logits = some_logits(3, seed, vocabulary=5120)
    logits = logits.round() if ties else logits
    values, ids = top_candidates(logits, count)
    for row in range(3):
        line = logits[row].tolist()
        expected = sorted(range(5120), key=lambda i: (-line[i], i))[:count]
        assert ids[row].tolist() == expected
        assert values[row].tolist() == [line[i] for i in expected]


def test_logprobs_are_those_of_the_unmodified_distribution():
    logits = some_logits(4, 2, real=500)
    entries = token_logprobs(logits, [3, 499, 0, 17], [2, 0, 5, 1])
    for row, entry in enumerate(entries):
        x = logits[row, :500].double().numpy()
        expected = x - x.max() - np.log(np.exp(x - x.max()).sum())
        assert entry.logprob == pytest.approx(expected[entry.token_id], abs=2e-6)
        best = sorted(range(500), key=lambda i: -x[i])[: [2, 0, 5, 1][row]]
        assert [token for token, _ in entry.top] == best
        assert [value for _, value in entry.top] == pytest.approx([expected[i] for i in best], abs=2e-6)


def test_logprobs_of_a_row_do_not_depend_on_its_company():
    logits = some_logits(33, 8)
    together = token_logprobs(logits, [5] * 33, [3] * 33)
    for row in (0, 7, 32):
        assert token_logprobs(logits[row : row + 1], [5], [3])[0] == together[row]
        assert (
            token_logprobs(
                logits[row : row + 2], [5] * len(logits[row : row + 2]), [100, 3][: len(logits[row : row + 2])]
            )[0].logprob
            == together[row].logprob
        )


def test_a_repetition_penalty_makes_seen_tokens_less_likely():
    logits = torch.tensor([2.0, -2.0, 1.0, 0.0])
    penalise(logits, torch.tensor([0, 1, 3]), 2.0)
    assert logits.tolist() == [1.0, -4.0, 1.0, 0.0]


def test_a_very_low_temperature_is_greedy_without_overflow():
    logits = some_logits(5, 4)
    plans = [plan(temperature=1e-30), plan(temperature=1e-30, top_k=40), plan(temperature=1e-30, top_p=0.9)]
    for row_plan in plans:
        assert draw(logits, [row_plan] * 5, list(range(5))).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {}, {"top_k": 40, "top_p": 0.9}])
def test_rows_that_are_not_finite_still_give_an_id_of_the_vocabulary_and_disturb_no_other(sampling):
    # A GPU draws before it is known which rows are; an id out of range would end the process there.
    logits = some_logits(4, 6)
    expected = draw(logits, [plan(**sampling)] * 4, list(range(4))).tolist()
    logits[1], logits[2] = torch.nan, -torch.inf
    found = draw(logits, [plan(**sampling)] * 4, list(range(4))).tolist()
    assert (found[0], found[3]) == (expected[0], expected[3])
    assert all(0 <= token < VOCABULARY for token in found)


@pytest.mark.parametrize(
    ("samplings", "expected"),
    [
        ([{"top_k": 40}, {"top_k": 64, "top_p": 0.9}], True),
        ([{}, {"min_p": 0.1}], True),
        ([{"temperature": 0.0}], True),
        ([{"top_k": 65}], False),
        ([{"top_p": 0.9}], False),
        ([{"top_k": 40}, {}], False),
    ],
)
def test_draws_that_a_device_is_not_waited_for_are_known(samplings, expected):
    assert draws_without_waiting([plan(**sampling) for sampling in samplings]) is expected
