"""Promises of training on masked windows: the mean over a step's targets, whoever computes which of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt_core.finetuning.masked_windows import masked, num_targets
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.training.learner import Learner
from gpt_core.training.reduction import Ranks
from gpt_core.training.schedule import Recipe
from gpt_core.training.step import Compute
from tests.reference.gpt2_numpy import cross_entropy, logits
from tests.unit.gloo_ranks import run_on_ranks

SHAPE = ModelShape(2, 2, 24, 16, 67)
RECIPE = Recipe(learning_rate=1e-2, clip_norm=0.5)


def masked_micro_batches(step, count=4):
    """Windows whose numbers of targets differ a lot: row r of a step has about r of ten."""
    generator = np.random.default_rng(step)
    tokens = generator.integers(0, SHAPE.vocabulary_size, (count, 2, SHAPE.num_positions + 1))
    share = np.linspace(0.1, 0.9, count * 2).reshape(count, 2, 1)
    is_target = generator.random(tokens.shape) < share
    is_target[..., 1], is_target[..., -1] = True, False
    return masked(tokens, is_target)


def train_steps(ranks, num_steps, **compute):
    """Train on a rank's share; return the digest and everything that is logged."""
    torch.set_num_threads(1)
    learner = Learner(SHAPE, RECIPE, 7, Compute(**compute), ranks).initialise()
    shares = (np.array_split(masked_micro_batches(step), ranks.num_ranks)[ranks.rank] for step in range(num_steps))
    reports = [learner.take_step(share, 1.0) for share in shares]
    return learner.digest(), reports


def test_the_loss_of_a_step_is_the_float64_mean_over_all_its_targets():
    batches = masked_micro_batches(0)
    learner = Learner(SHAPE, RECIPE, 7).initialise()
    weights = {name: view.numpy().copy() for name, view in learner.weights().items()}
    losses = []
    for window in batches.reshape(-1, SHAPE.num_positions + 1):
        ids = np.where(window < 0, ~window, window)
        scores = logits(ids[:-1], weights, SHAPE.n_layer, SHAPE.n_head)
        losses += [cross_entropy(scores[i : i + 1], ids[i + 1 : i + 2]) for i in np.flatnonzero(window[1:] >= 0)]
    assert len(losses) == num_targets(batches)
    assert learner.take_step(batches, 1.0).loss == pytest.approx(np.mean(losses), abs=1e-6)


def test_the_gradient_is_that_of_one_mean_over_the_whole_batch():
    batches = masked_micro_batches(1)
    learner = Learner(SHAPE, RECIPE, 7).initialise()
    windows = torch.from_numpy(batches).flatten(0, 1)
    model = GPT(SHAPE).initialise(7)
    ids = torch.where(windows < 0, ~windows, windows)
    scores = F.linear(model.hidden(ids[:, :-1]), model.wte.weight)
    F.cross_entropy(scores.flatten(0, 1), windows[:, 1:].clamp(min=-1).flatten(), ignore_index=-1).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
    assert learner.take_step(batches, 1.0).grad_norm == pytest.approx(norm, rel=1e-5)


def test_weights_and_reports_are_the_same_bits_on_1_2_and_4_ranks_sharded_or_not(tmp_path):
    alone = train_steps(Ranks(), 3)
    for num_ranks, sharding in ((2, "none"), (4, "none"), (2, "optimizer")):
        assert run_on_ranks(num_ranks, tmp_path, train_steps, 3, sharding=sharding) == [alone] * num_ranks


def test_held_out_losses_count_targets_alone():
    windows = masked_micro_batches(2)[0]
    learner = Learner(SHAPE, RECIPE, 7).initialise()
    whole = learner.window_losses(np.where(windows < 0, ~windows, windows))
    rest = learner.window_losses(masked(np.where(windows < 0, ~windows, windows), windows < 0))
    assert learner.window_losses(windows) + rest == pytest.approx(whole, rel=1e-12)
