"""Promises of training with sharded state: the same bits, and checkpoints that know nothing of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt_core.errors import SettingsError
from gpt_core.model.precision import can_compute_bf16
from gpt_core.training import checkpoint
from gpt_core.training.loop import train
from gpt_core.training.reduction import Ranks
from gpt_core.training.schedule import Recipe
from tests.unit import tiny_corpus
from tests.unit.gloo_ranks import run_on_ranks
from tests.unit.tiny_run import NUM_STEPS, Recorder, digest_of, tiny_plan, train_and_tell


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    tiny_corpus.build(folder)
    return folder


@pytest.fixture
def plan(corpus, tmp_path):
    return tiny_plan(corpus, tmp_path / "run")


def files_of(run_folder):
    """The bytes of the last checkpoint's tensors."""
    path = Path(str(checkpoint.load(run_folder).path))
    return [(path / name).read_bytes() for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER)]


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "fp32"), ("adamw", "bf16"), ("muon", "fp32")])
def test_a_run_that_changes_its_ranks_and_its_sharding_on_the_way_is_the_calm_one_to_the_bit(
    plan, tmp_path, optimizer, precision
):
    if precision == "bf16" and not can_compute_bf16(torch.device("cpu")):
        pytest.skip("this CPU has no bf16 instructions; run on one with AVX512-BF16 or AMX")
    plan = replace(plan, precision=precision, recipe=replace(plan.recipe, optimizer=optimizer))
    calm = train_and_tell(Ranks(), plan)
    changing = replace(plan, output=str(tmp_path / "changing"))
    told = {}
    for num_ranks, sharding, stop_after in (
        (2, "optimizer", 2), (1, "none", 1), (4, "optimizer", 1), (1, "optimizer", 1), (2, "optimizer", None)
    ):  # fmt: skip
        stage = replace(changing, sharding=sharding)
        results = run_on_ranks(num_ranks, tmp_path, train_and_tell, stage, stop_after)
        assert results == results[:1] * num_ranks
        told |= results[0][0]
    assert (told, digest_of(changing.output)) == calm
    assert files_of(changing.output) == files_of(plan.output)


def clocked(ranks, plan):
    recorder = Recorder()
    train(plan, ranks, recorder)
    return recorder.checkpoints


def test_checkpoints_by_the_clock_of_rank_0_take_every_ranks_part(plan, tmp_path):
    train_and_tell(Ranks(), plan)
    sharded = replace(
        plan, output=str(tmp_path / "sharded"), sharding="optimizer", checkpoint_every_seconds=1e-9, keep_checkpoints=9
    )
    assert run_on_ranks(2, tmp_path, clocked, sharded) == [list(range(1, NUM_STEPS + 1)), []]
    assert digest_of(sharded.output) == digest_of(plan.output)


def test_a_fully_sharded_run_goes_on_replicated_and_back_within_1e_5_of_the_calm_one(plan, tmp_path):
    plan = replace(plan, reduction="fast", activation_checkpointing=True)
    calm, _ = train_and_tell(Ranks(), plan)
    changing = replace(plan, output=str(tmp_path / "changing"))
    told = {}
    for num_ranks, sharding, stop_after in ((2, "full", 2), (1, "none", 2), (2, "full", None)):
        stage = replace(changing, sharding=sharding)
        told |= run_on_ranks(num_ranks, tmp_path, train_and_tell, stage, stop_after)[0][0]
    assert told.keys() == calm.keys()
    for step, numbers in told.items():
        assert numbers == pytest.approx(calm[step], rel=1e-4, abs=1e-5)
    names = [checkpoint.load(folder).weights.keys() for folder in (plan.output, changing.output)]
    assert list(names[0]) == list(names[1])


def test_full_sharding_is_refused_with_exact_sums_or_muon_before_any_work(plan):
    with pytest.raises(SettingsError, match=r"train\.sharding: found full with reduction exact.*to fast"):
        replace(plan, sharding="full")
    with pytest.raises(SettingsError, match=r"found full with recipe\.optimizer muon.*set recipe\.optimizer to adamw"):
        replace(plan, sharding="full", reduction="fast", recipe=Recipe(optimizer="muon"))


def test_full_sharding_on_one_rank_is_plain_training(plan, tmp_path):
    fast = replace(plan, reduction="fast")
    full = replace(fast, output=str(tmp_path / "full"), sharding="full")
    assert train_and_tell(Ranks(), fast) == train_and_tell(Ranks(), full)
