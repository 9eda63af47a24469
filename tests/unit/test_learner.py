"""Promises of gpt_core.training.learner and gpt_core.training.optimizer."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from gpt_core.errors import RunFailedError, SettingsError
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.training.learner import Learner
from gpt_core.training.reduction import Ranks
from gpt_core.training.schedule import Recipe
from gpt_core.training.step import Compute, Votes
from tests.unit.gloo_ranks import run_on_ranks

SHAPE = ModelShape(2, 2, 24, 16, 67, dropout=0.1)
STILL = ModelShape(2, 2, 24, 16, 67)
RECIPE = Recipe(learning_rate=1e-2, weight_decay=0.1, clip_norm=0.5)


def micro_batches_of(step, shape=SHAPE, count=4):
    generator = np.random.default_rng(step)
    return generator.integers(0, shape.vocabulary_size, (count, 2, shape.num_positions + 1))


def train_steps(ranks, num_steps, shape, recipe, *, count=4, **compute):
    """Train on a rank's share; return the digest and everything that is logged."""
    torch.set_num_threads(1)  # the bits of CPU kernels may depend on it, here and in the ranks' processes
    learner = Learner(shape, recipe, 7, Compute(**compute), ranks).initialise()
    reports = []
    for step in range(num_steps):
        mine = np.array_split(micro_batches_of(step, shape, count), ranks.num_ranks)[ranks.rank]
        reports.append(learner.take_step(mine, 1.0))
    return learner.digest(), reports


def train_both_ways(ranks, num_steps, shape, recipe, **compute):
    """Return what the training comes to with the state replicated and with it sharded."""
    return [train_steps(ranks, num_steps, shape, recipe, sharding=way, **compute) for way in ("none", "optimizer")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_moments_and_reports_are_the_same_bits_on_1_2_and_4_ranks_sharded_or_not(tmp_path, dtype):
    alone = train_steps(Ranks(), 3, SHAPE, RECIPE, dtype=dtype)
    for num_ranks in (2, 4):
        found = run_on_ranks(num_ranks, tmp_path, train_both_ways, 3, SHAPE, RECIPE, dtype=dtype)
        assert found == [[alone, alone]] * num_ranks


def test_muon_is_the_same_bits_on_any_ranks_too(tmp_path):
    recipe = Recipe(optimizer="muon", learning_rate=1e-2)
    alone = train_steps(Ranks(), 2, SHAPE, recipe)
    assert run_on_ranks(2, tmp_path, train_both_ways, 2, SHAPE, recipe) == [[alone, alone]] * 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sharded_each_rank_keeps_its_part_of_the_optimizer_and_no_more(optimizer):
    shape = ModelShape(4, 2, 64, 16, 67)
    compute = Compute(sharding="optimizer", dtype=torch.bfloat16)
    learners = [Learner(shape, Recipe(optimizer=optimizer), 7, compute, Ranks(rank, 4)) for rank in range(4)]
    for name in ("weights", "first_moment", "second_moment"):
        held = [getattr(learner.optimizer, name).numel() for learner in learners]
        assert sum(held) == learners[0].layout.num_elements
        assert max(held) < 0.3 * sum(held)


def test_fast_reduction_shards_the_optimizer_over_three_ranks_too(tmp_path):
    _, expected = train_steps(Ranks(), 3, STILL, RECIPE, reduction="fast", count=6)
    ways = run_on_ranks(3, tmp_path, train_both_ways, 3, STILL, RECIPE, reduction="fast", count=6)
    assert ways == ways[:1] * 3
    for _, reports in ways[0]:
        assert [r.loss for r in reports] == pytest.approx([r.loss for r in expected], rel=1e-5)
        assert [r.grad_norm for r in reports] == pytest.approx([r.grad_norm for r in expected], rel=1e-5)


def test_other_seeds_steps_and_micro_batches_drop_other_units():
    windows = micro_batches_of(0)[:1].repeat(4, axis=0)
    losses = {
        Learner(SHAPE, RECIPE, seed).initialise().take_step(np.roll(windows, seed, 0)[:1], 1.0).loss
        for seed in (1, 2, 3)
    }
    assert len(losses) == 3


def plain_training(num_steps):
    """The same training written with public torch parts only, one batch at once."""
    model = GPT(STILL).initialise(7)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for step in range(num_steps):
        ids = torch.from_numpy(micro_batches_of(step, STILL)).flatten(0, 1)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def test_a_step_is_that_of_plain_torch():
    losses, norms = plain_training(5)
    _, reports = train_steps(Ranks(), 5, STILL, RECIPE)
    assert [r.loss for r in reports] == pytest.approx(losses, rel=1e-4)
    assert [r.grad_norm for r in reports] == pytest.approx(norms, rel=1e-3)


def test_bf16_training_keeps_fp32_masters_and_stays_near_fp32():
    _, exact = train_steps(Ranks(), 5, STILL, RECIPE)
    _, rough = train_steps(Ranks(), 5, STILL, RECIPE, dtype=torch.bfloat16)
    assert [r.loss for r in rough] == pytest.approx([r.loss for r in exact], rel=1e-2)
    learner = Learner(STILL, RECIPE, 7, Compute(dtype=torch.bfloat16)).initialise()
    assert {w.dtype for w in learner.weights().values()} == {torch.float32}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_batch_can_be_learnt_by_heart(optimizer):
    learner = Learner(STILL, Recipe(optimizer=optimizer, learning_rate=1e-2), 7).initialise()
    windows = micro_batches_of(0, STILL, count=1)
    first = learner.take_step(windows, 1.0).loss
    later = [learner.take_step(windows, 1.0).loss for _ in range(40)]
    assert later[-1] < 0.3 * first


def test_a_learner_restored_from_its_state_goes_on_bit_for_bit():
    learner = Learner(SHAPE, RECIPE, 7).initialise()
    for step in range(2):
        learner.take_step(micro_batches_of(step), 1.0)
    copy = Learner(SHAPE, RECIPE, 7)
    copy.load_weights(learner.weights()).load_optimizer_state(learner.snapshot().optimizer_state, learner.step)
    reports = [one.take_step(micro_batches_of(2), 0.5) for one in (learner, copy)]
    assert reports[0] == reports[1]
    assert learner.digest() == copy.digest()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_weights(optimizer):
    learner = Learner(STILL, replace(RECIPE, optimizer=optimizer), 7).initialise()
    learner.take_step(micro_batches_of(1, STILL), 1.0)
    learner.weights()["ln_f.weight"][3] = float("nan")
    before = learner.digest()
    with pytest.raises(RunFailedError, match=r"step 1.*loss nan"):
        learner.take_step(micro_batches_of(0), 1.0)
    assert learner.digest() == before


def test_votes_to_stop_are_counted():
    report = Learner(STILL, RECIPE, 7).initialise().take_step(micro_batches_of(0), 1.0, Votes(stop=True))
    assert (report.stop_votes, report.save_votes) == (1, 0)


def test_a_step_of_three_micro_batches_is_refused_in_exact_mode_and_taken_in_fast():
    windows = micro_batches_of(0, count=3)
    with pytest.raises(SettingsError, match="3 micro-batches"):
        Learner(SHAPE, RECIPE, 7).initialise().take_step(windows, 1.0)
    Learner(SHAPE, RECIPE, 7, Compute(reduction="fast")).initialise().take_step(windows, 1.0)


def test_window_losses_are_without_dropout_and_add_up_to_the_models_loss():
    learner = Learner(SHAPE, RECIPE, 7).initialise()
    windows = micro_batches_of(0)[0]
    sums = learner.window_losses(windows)
    model = GPT(SHAPE).initialise(7).eval()
    ids = torch.from_numpy(windows)
    with torch.no_grad():
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    assert sums.sum() == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_array_equal(sums, learner.window_losses(windows))


def test_only_tensors_of_two_dimensions_decay():
    learner = Learner(STILL, Recipe(weight_decay=0.5, learning_rate=0.1), 7).initialise()
    before = {name: w.clone() for name, w in learner.weights().items()}
    learner.optimizer.step(torch.zeros(learner.layout.num_elements), 1.0)
    for name, weight in learner.weights().items():
        factor = 0.95 if weight.ndim >= 2 else 1.0
        torch.testing.assert_close(weight, before[name] * factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_checkpointing_changes_no_bit_with_dropout_on(dtype):
    plain, recomputed = (
        train_steps(Ranks(), 3, SHAPE, RECIPE, dtype=dtype, activation_checkpointing=way) for way in (False, True)
    )
    assert recomputed == plain


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made while it is on, and the most that were alive at once."""

    def __init__(self, module):
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary({weight.untyped_storage(): True for weight in module.parameters()})

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in filter(torch.is_tensor, tree_leaves(made)):
            storage = tensor.untyped_storage()
            if storage not in self._seen:
                self._seen[storage] = True
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return made

    def _count(self, num_bytes):
        self.now += num_bytes
        self.peak = max(self.peak, self.now)


def bytes_of_a_micro_batch(shape, *, recomputes_blocks):
    """Bytes beyond the weights: kept by a forward pass, and the most alive in it and a backward pass."""
    model = GPT(shape)
    model.recomputes_blocks = recomputes_blocks
    with LiveBytes(model) as live:
        hidden_BTC = model.hidden(torch.zeros(4, shape.num_positions, dtype=torch.long))
        kept = live.now
        hidden_BTC.sum().backward()
    return kept, live.peak


def test_activation_checkpointing_keeps_a_tenth_and_needs_less_than_a_quarter_at_the_peak():
    shape = ModelShape(12, 2, 32, 128, 67)
    plain, recomputed = (bytes_of_a_micro_batch(shape, recomputes_blocks=way) for way in (False, True))
    inputs = shape.n_layer * 4 * shape.num_positions * shape.n_embd * 4  # what must be kept: one x_BTC a block
    assert inputs < recomputed[0] < plain[0] / 10
    assert recomputed[0] < recomputed[1] < plain[1] / 4
