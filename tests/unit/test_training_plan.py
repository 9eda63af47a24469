"""Promises of gpt_core.training.training_plan."""

import json
import re
from dataclasses import replace

import pytest

from gpt_core.errors import CheckpointError, SettingsError
from gpt_core.model.presets import ModelShape
from gpt_core.training.schedule import Recipe
from gpt_core.training.training_plan import (
    TrainingPlan,
    allowed_ranks,
    check_batch_plan,
    check_ranks,
    check_resume,
    check_vocabulary,
    told_schedule,
)

PLAN = TrainingPlan(
    corpus="corpus",
    output="run",
    shape=ModelShape(1, 1, 8, 16, 257),
    num_steps=10,
    window_tokens=16,
    batch_sequences=32,
    micro_batch_sequences=4,
    recipe=Recipe(learning_rate=1e-3),
)


def test_a_plan_survives_json():
    assert TrainingPlan.from_dict(json.loads(json.dumps(PLAN.to_dict()))) == PLAN


def test_tokens_are_counted_with_and_without_a_ramp():
    assert PLAN.tokens_after(10) == 10 * 32 * 16
    ramped = replace(PLAN, ramp_start_sequences=8, ramp_tokens=1000)
    # 8, 8, ... while the line 8 + 24 t / 1000 is below 16, that is up to t = 333; then 16, then 32.
    assert [ramped.tokens_after(n) for n in range(8)] == [0, 128, 256, 384, 640, 896, 1152, 1664]


def test_a_warm_up_that_the_run_does_not_outlast_is_told():
    """Ten steps of 32 x 16 tokens."""
    assert told_schedule(replace(PLAN, recipe=Recipe(warmup_tokens=5120))) is None
    said = told_schedule(replace(PLAN, recipe=Recipe(warmup_tokens=10240)))
    assert said is not None
    assert "10,240 is more than the run's 5,120 tokens: the learning rate comes to 50% of its peak only" in said


@pytest.mark.parametrize("ramp", [{}, {"ramp_start_sequences": 4, "ramp_tokens": 4096}])
def test_a_run_of_so_many_tokens_ends_with_the_first_step_that_reaches_them(ramp):
    plan = replace(PLAN, **ramp)
    for num_steps in (1, 2, 9):
        tokens = plan.tokens_after(num_steps)
        assert [plan.steps_for(tokens - 1), plan.steps_for(tokens), plan.steps_for(tokens + 1)] == [
            num_steps, num_steps, num_steps + 1
        ]  # fmt: skip


def test_a_context_longer_than_the_models_positions_is_refused():
    with pytest.raises(SettingsError, match="17; expected at most the model's num_positions, 16"):
        replace(PLAN, window_tokens=17)


def test_micro_batches_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(SettingsError, match="5; expected a divisor of batch_sequences, 32"):
        replace(PLAN, micro_batch_sequences=5)


def test_ranks_are_checked_against_the_smallest_step_of_a_ramp():
    check_ranks(PLAN, 8)
    with pytest.raises(SettingsError, match="8 workers for 2 micro-batches"):
        check_ranks(replace(PLAN, ramp_start_sequences=8, ramp_tokens=1000), 8)


@pytest.mark.parametrize("vocabulary_size", [256, 258])
def test_a_vocabulary_that_is_not_the_corpuss_is_refused(vocabulary_size):
    with pytest.raises(SettingsError, match=f"257; expected {vocabulary_size}, that of the corpus's"):
        check_vocabulary(PLAN.shape, "bytes", vocabulary_size)


def test_a_resume_names_the_first_setting_that_differs():
    other = replace(PLAN, batch_sequences=64)
    with pytest.raises(CheckpointError, match=r"train.batch_sequences 32; expected the 64 of this run"):
        check_resume("run/checkpoints/step-1", PLAN.identity(), other.identity())


def test_other_rhythms_are_no_other_run():
    other = replace(PLAN, checkpoint_every_steps=3, num_threads=2, evaluate_sequences=1)
    check_resume("run", PLAN.identity(), other.identity())


def test_more_steps_are_the_same_run_only_where_the_decay_has_a_length_of_its_own():
    fixed = replace(PLAN, recipe=Recipe(decay_tokens=4096))
    check_resume("run", fixed.identity(), replace(fixed, num_steps=99).identity())
    longer = replace(PLAN, num_steps=99)
    with pytest.raises(CheckpointError) as caught:
        check_resume("run", PLAN.identity(), longer.identity())
    # 10 and 99 steps of 32 sequences of 16 tokens
    assert str(caught.value) == (
        "run: found a run begun with recipe.decay_tokens 5120; expected the 50688 of this run; set train.num_steps "
        "back, where the decay ends with it, or recipe.decay_tokens to 5120, or choose another output folder"
    )
    check_resume("run", PLAN.identity(), replace(longer, recipe=replace(PLAN.recipe, decay_tokens=5120)).identity())


def test_a_refusal_to_resume_names_the_setting_that_would_allow_it():
    changed = replace(PLAN, ramp_start_sequences=8, batch_sequences=64)
    with pytest.raises(
        CheckpointError, match=r"begun with train.batch_sequences 32; .*set train.batch_sequences to 32"
    ):
        check_resume("run", PLAN.identity(), changed.identity())
    with pytest.raises(CheckpointError, match=r"begun with corpus 'ab'; .*give the corpus of this root digest"):
        check_resume("run", {"corpus": "ab"}, {"corpus": "cd"})
    with pytest.raises(CheckpointError, match=r"set train\.ramp_start_sequences to null"):
        check_resume("run", PLAN.identity(), replace(PLAN, ramp_start_sequences=8).identity())


@pytest.mark.parametrize(
    ("num_micro_batches", "num_ranks", "message"),
    [
        (8, 3, "3 workers for 8 micro-batches a step; expected a power of two.*use 2 or 4, or a larger batch$"),
        (4, 6, "6 workers for 4 micro-batches a step; expected a power of two.*use 2 or 4, or a larger batch$"),
        (1, 3, "3 workers for 1 micro-batches a step; expected a power of two.*use 1, or a larger batch$"),
        (6, 2, "6 micro-batches a step; expected a power of two.*use 4 or 8, or reduction fast$"),
        (6, 4, "6 micro-batches a step; expected a power of two.*use 4 or 8$"),
        (4, 8, "8 workers for 4 micro-batches a step; .*use 2 or 4, or a larger batch$"),
    ],
)
def test_ranks_that_cannot_share_the_tree_are_refused_with_what_works(num_micro_batches, num_ranks, message):
    with pytest.raises(SettingsError, match=message):
        check_batch_plan(num_micro_batches, num_ranks, "exact")


@pytest.mark.parametrize("num_micro_batches", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("num_ranks", range(1, 40))
def test_every_number_of_workers_that_a_refusal_offers_is_taken(num_micro_batches, num_ranks):
    try:
        check_batch_plan(num_micro_batches, num_ranks, "exact")
    except SettingsError as error:
        offered = [int(word) for word in re.findall(r"\d+", error.remedy)]
        assert offered
        for number in offered:
            check_batch_plan(num_micro_batches, number, "exact")


def test_fast_reduction_takes_any_divisor():
    check_batch_plan(6, 3, "fast")
    with pytest.raises(SettingsError, match="4 workers for 6"):
        check_batch_plan(6, 4, "fast")


def test_the_allowed_ranks_of_a_range_are_powers_of_two_in_exact_mode_and_divisors_in_fast_mode():
    plan = replace(PLAN, batch_sequences=24, micro_batch_sequences=2, reduction="fast")
    assert allowed_ranks(plan, 1, 9) == [1, 2, 3, 4, 6]
    exact = replace(plan, batch_sequences=16, reduction="exact")
    assert allowed_ranks(exact, 1, 9) == [1, 2, 4, 8]
    assert allowed_ranks(replace(exact, ramp_start_sequences=4, ramp_tokens=9), 1, 9) == [1, 2]
    with pytest.raises(SettingsError, match="use 4 or 8"):
        allowed_ranks(exact, 5, 7)
