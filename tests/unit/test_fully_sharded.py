"""Promises of training.fully_sharded: replicated training's results to rounding, its checkpoints to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt_core.errors import SettingsError
from gpt_core.finetuning.masked_windows import masked
from gpt_core.model.presets import ModelShape
from gpt_core.training.fully_sharded import FullyShardedLearner
from gpt_core.training.learner import Learner
from gpt_core.training.reduction import Ranks
from gpt_core.training.schedule import Recipe
from gpt_core.training.step import Compute, Votes
from tests.unit.gloo_ranks import run_on_ranks

# Widths, vocabulary and biases that two and three ranks cut unevenly.
SHAPE = ModelShape(2, 2, 18, 16, 67, dropout=0.1)
RECIPE = Recipe(learning_rate=1e-2, weight_decay=0.1, clip_norm=0.5)
COMPUTE = Compute(reduction="fast")
NUM_STEPS = 20


def micro_batches_of(step, count=6):
    return np.random.default_rng(step % 2).integers(0, SHAPE.vocabulary_size, (count, 2, SHAPE.num_positions + 1))


def share_of(ranks, step):
    return np.array_split(micro_batches_of(step), ranks.num_ranks)[ranks.rank]


def train_steps(ranks, learner, steps):
    return [learner.take_step(share_of(ranks, step), 1.0, Votes(save=ranks.rank == 0)) for step in steps]


def train_sharded(ranks, compute=COMPUTE):
    torch.set_num_threads(1)
    learner = FullyShardedLearner(SHAPE, RECIPE, 7, compute, ranks).initialise()
    reports = train_steps(ranks, learner, range(NUM_STEPS))
    held_out = learner.window_losses(micro_batches_of(99)[ranks.rank])
    if ranks.rank:
        learner.join_snapshot()
        return reports, held_out, None
    return reports, held_out, {name: tensor.numpy() for name, tensor in learner.snapshot().weights.items()}


def train_replicated(dtype=torch.float32):
    torch.set_num_threads(1)
    learner = Learner(SHAPE, RECIPE, 7, Compute(dtype=dtype, reduction="fast")).initialise()
    return learner, train_steps(Ranks(), learner, range(NUM_STEPS))


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_losses_equal_replicated_trainings_within_1e_5_over_20_steps(tmp_path, num_ranks):
    learner, expected = train_replicated()
    results = run_on_ranks(num_ranks, tmp_path, train_sharded)
    for rank, (reports, held_out, _) in enumerate(results):
        assert [r.loss for r in reports] == pytest.approx([r.loss for r in expected], abs=1e-5)
        assert [r.grad_norm for r in reports] == pytest.approx([r.grad_norm for r in expected], rel=1e-4)
        assert {(r.stop_votes, r.save_votes) for r in reports} == {(0, 1)}
        np.testing.assert_allclose(held_out, learner.window_losses(micro_batches_of(99)[rank]), rtol=1e-5)
    for name, tensor in learner.weights().items():
        if not name.endswith("c_attn.bias"):  # a key's bias has no gradient but rounding, which AdamW scales up
            np.testing.assert_allclose(results[0][2][name], tensor, atol=1e-4)
    assert expected[-1].loss < expected[0].loss


def masked_step(ranks):
    torch.set_num_threads(1)
    kind = Learner if ranks.num_ranks == 1 else FullyShardedLearner
    learner = kind(SHAPE, RECIPE, 7, COMPUTE, ranks).initialise()
    is_target = np.random.default_rng(5).random(micro_batches_of(0).shape) < 0.3
    is_target[..., -1] = False
    windows = masked(micro_batches_of(0), is_target)
    mine = np.array_split(windows, ranks.num_ranks)[ranks.rank]
    return learner.take_step(mine, 1.0), learner.window_losses(windows[0])


def test_masked_windows_count_their_targets_alone_over_all_ranks(tmp_path):
    expected, held_out = masked_step(Ranks())
    for report, found in run_on_ranks(2, tmp_path, masked_step):
        assert report.loss == pytest.approx(expected.loss, rel=1e-5)
        assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
        np.testing.assert_allclose(found, held_out, rtol=1e-3)


def test_bf16_keeps_fp32_masters_and_stays_near_replicated_bf16(tmp_path):
    _, expected = train_replicated(torch.bfloat16)
    results = run_on_ranks(2, tmp_path, train_sharded, Compute(dtype=torch.bfloat16, reduction="fast"))
    assert [r.loss for r in results[0][0]] == pytest.approx([r.loss for r in expected], rel=2e-2)
    assert {tensor.dtype for tensor in results[0][2].values()} == {np.dtype(np.float32)}


def test_activation_checkpointing_changes_no_bit_of_it(tmp_path):
    torch.set_num_threads(1)
    plain = run_on_ranks(2, tmp_path, train_sharded)
    recomputed = run_on_ranks(2, tmp_path, train_sharded, replace(COMPUTE, activation_checkpointing=True))
    assert recomputed[0][0] == plain[0][0]


def go_on(ranks, weights, state, step):
    torch.set_num_threads(1)
    learner = FullyShardedLearner(SHAPE, RECIPE, 7, COMPUTE, ranks)
    learner.load_weights(weights).load_optimizer_state(state, step)
    unchanged = learner.snapshot()
    reports = train_steps(ranks, learner, range(step, step + 2))
    return unchanged.digest(), [report.loss for report in reports]


def test_a_replicated_learners_state_moves_in_and_out_to_the_bit_and_training_goes_on(tmp_path):
    learner, _ = train_replicated()
    before = learner.snapshot()
    found = run_on_ranks(2, tmp_path, go_on, *before, learner.step)
    expected = [report.loss for report in train_steps(Ranks(), learner, range(NUM_STEPS, NUM_STEPS + 2))]
    for digest, losses in found:
        assert digest == before.digest()
        assert losses == pytest.approx(expected, abs=1e-5)


def test_exact_reduction_and_muon_are_refused_with_what_to_set():
    with pytest.raises(SettingsError, match=r"full with reduction exact.*set train\.reduction to fast"):
        FullyShardedLearner(SHAPE, RECIPE, 7, Compute(), Ranks(0, 2))
    with pytest.raises(SettingsError, match=r"full with recipe\.optimizer muon.*adamw"):
        FullyShardedLearner(SHAPE, Recipe(optimizer="muon"), 7, COMPUTE, Ranks(0, 2))
