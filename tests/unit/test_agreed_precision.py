"""What "auto" means as precision: the same on all ranks of a run, from its first start to its last."""

from dataclasses import replace

import pytest
import torch

from gpt_core.errors import CheckpointError
from gpt_core.training import checkpoint
from gpt_core.training import loop as training
from gpt_core.training.loop import train
from gpt_core.training.observer import Silence
from tests.unit import tiny_corpus
from tests.unit.gloo_ranks import run_on_ranks
from tests.unit.tiny_run import tiny_plan


@pytest.fixture
def plan(tmp_path):
    return tiny_plan(tiny_corpus.build(tmp_path / "corpus").folder, tmp_path / "run")


def choosing(auto):
    """Return a choose_dtype for a machine on which "auto" is this dtype."""
    return lambda precision, device: {"fp32": torch.float32, "bf16": torch.bfloat16, "auto": auto}[precision]


def test_a_resume_with_auto_keeps_the_precision_the_run_was_begun_with(plan, monkeypatch):
    monkeypatch.setattr("gpt_core.training.loop.choose_dtype", choosing(auto=torch.float32))
    train(replace(plan, num_steps=1))
    monkeypatch.setattr("gpt_core.training.loop.choose_dtype", choosing(auto=torch.bfloat16))
    train(replace(plan, num_steps=2))
    assert checkpoint.load(plan.output).description.settings["precision"] == "fp32"


def test_a_resume_with_auto_where_there_is_no_fast_bf16_is_refused_for_a_run_begun_in_bf16(plan, monkeypatch):
    monkeypatch.setattr("gpt_core.training.loop.choose_dtype", choosing(auto=torch.bfloat16))
    train(replace(plan, num_steps=1))
    monkeypatch.setattr("gpt_core.training.loop.choose_dtype", choosing(auto=torch.float32))
    with pytest.raises(CheckpointError, match=r"a run begun with train.precision 'bf16'; expected the 'fp32'"):
        train(plan)


def precision_on_unlike_nodes(ranks, plan):
    """Train where only the first rank's machine has fast bf16; return what each computes in."""
    training.choose_dtype = choosing(auto=torch.float32 if ranks.rank else torch.bfloat16)
    run = training.Run(plan, ranks, Silence())
    run.resume()
    run.finish()
    return run.plan.precision, run.learner.compute.dtype


def test_auto_is_one_precision_for_all_ranks_also_on_unlike_nodes(plan, tmp_path):
    assert run_on_ranks(2, tmp_path, precision_on_unlike_nodes, plan) == [("fp32", torch.float32)] * 2
