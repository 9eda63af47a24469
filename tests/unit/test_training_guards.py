"""Promises of the guards of training.loop: a loss that is no number or leaps ends the run and names the rows."""

from dataclasses import replace

import pytest

from gpt_core.errors import RunFailedError
from gpt_core.training import loop as training
from gpt_core.training import step_metrics
from gpt_core.training.learner import Learner
from gpt_core.training.loop import train
from gpt_core.training.observer import Silence
from gpt_core.training.reduction import Ranks
from tests.unit import tiny_corpus
from tests.unit.gloo_ranks import run_on_ranks
from tests.unit.tiny_run import tiny_plan


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    tiny_corpus.build(folder)
    return folder


@pytest.fixture
def plan(corpus, tmp_path):
    return tiny_plan(corpus, tmp_path / "run")


def test_a_loss_that_leaps_stops_the_run_with_step_rows_and_last_checkpoint(plan, monkeypatch):
    monkeypatch.setattr(step_metrics, "STEPS_BEFORE_SPIKES", 3)
    calm = replace(plan, checkpoint_every_steps=1)
    with pytest.raises(RunFailedError, match=r"step 4, rows 24 to 31.*smoothed loss.*step-00000003"):
        train(replace(calm, max_loss_rise=-99.0))


def test_a_loss_that_is_no_number_names_the_rows(plan):
    run = training.Run(replace(plan, precision="fp32"), Ranks(), Silence())
    run.resume()
    assert isinstance(run.learner, Learner)
    run.learner.weights()["ln_f.bias"].fill_(float("nan"))
    with pytest.raises(RunFailedError, match="step 1, rows 0 to 1: found loss nan"), run.batches(1) as batches:
        run.take_step(batches.take()[0])


def fail_in_a_step(ranks, plan, bad_micro_batch):
    """Train on a rank; return how its run failed, with no number for the loss of one micro-batch of the step."""
    run = training.Run(plan, ranks, Silence())
    run.resume()
    assert isinstance(run.learner, Learner)
    contribution = run.learner._contribution

    def poisoned(windows, index):
        found = contribution(windows, index)
        if index == bad_micro_batch:
            run.learner._losses[-1] = found[-1] = found[-1] * float("nan")
        return found

    run.learner._contribution = poisoned
    with pytest.raises(RunFailedError) as caught, run.batches(1) as batches:
        run.take_step(batches.take()[0])
    return caught.value.where


def test_every_rank_names_the_rows_whose_loss_is_no_number_whoever_had_them(plan, tmp_path):
    assert run_on_ranks(2, tmp_path, fail_in_a_step, plan, 3) == ["step 1, rows 6 to 7"] * 2


def leap(ranks, plan):
    step_metrics.STEPS_BEFORE_SPIKES = 3
    with pytest.raises(RunFailedError) as caught:
        train(plan, ranks)
    return caught.value.where


def test_every_rank_names_all_rows_of_a_step_whose_loss_leaps(plan, tmp_path):
    leaping = replace(plan, max_loss_rise=-99.0)
    assert run_on_ranks(2, tmp_path, leap, leaping) == ["step 4, rows 24 to 31"] * 2
