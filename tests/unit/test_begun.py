"""Promises of gpt_core.training.begun, and of what the driver and its workers do with it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import training
from gpt_core.errors import CheckpointError, CorpusError
from gpt_core.training import begun, checkpoint
from gpt_core.training.begun import Begun
from gpt_core.training.checkpoint import Description
from tests.unit.tiny_run import tiny_plan


@pytest.fixture
def plan(tmp_path):
    return replace(tiny_plan("corpus", tmp_path), precision="bf16")


def test_the_driver_refuses_another_run_before_the_first_checkpoint_of_the_first(plan):
    begun.write(Begun("ab" * 32, plan))
    training.check_begun("pretrain", plan, "ab" * 32)
    with pytest.raises(CheckpointError, match=r"begun with train\.seed 5; .*set train\.seed to 5, or choose another"):
        training.check_begun("pretrain", replace(plan, seed=99), "ab" * 32)
    with pytest.raises(
        CheckpointError, match=rf"begun with corpus '{'ab' * 32}'; .*give the corpus of this root digest"
    ):
        training.check_begun("pretrain", plan, "cd" * 32)


def test_a_run_whose_decay_ends_with_it_names_the_steps_that_were_set(plan):
    free = replace(plan, recipe=replace(plan.recipe, decay_tokens=None), num_steps=4)
    begun.write(Begun("ab" * 32, free))
    with pytest.raises(
        CheckpointError,
        match=r"begun with train\.num_steps 4; expected the 3 of this run; .*or recipe\.decay_tokens to 256",
    ):
        training.check_begun("pretrain", replace(free, num_steps=3), "ab" * 32)


def test_the_driver_leaves_what_auto_means_to_the_workers_and_refuses_another_precision_that_is_named(plan):
    begun.write(Begun("ab" * 32, plan))
    training.check_begun("pretrain", replace(plan, precision="auto"), "ab" * 32)
    with pytest.raises(CheckpointError, match=r"begun with train\.precision 'bf16'; .*set train\.precision to bf16"):
        training.check_begun("pretrain", replace(plan, precision="fp32"), "ab" * 32)


def test_the_folder_of_an_imported_model_is_no_output(plan):
    checkpoint.write(plan.output, Description(0, 0, plan.shape), {}, {})
    with pytest.raises(CheckpointError, match=r"found an imported model; .*another folder, .*`herd finetune --check"):
        training.check_begun("pretrain", plan, "ab" * 32)


def test_what_a_run_was_begun_with_proves_itself(plan):
    begun.write(Begun(None, plan))
    assert begun.read(plan.output) == Begun(None, plan)
    path = Path(plan.output) / begun.BEGUN
    path.write_text(path.read_text().replace('"seed": 5', '"seed": 6'))
    with pytest.raises(CorpusError, match="content that does not match its digest"):
        begun.read(plan.output)


def test_a_resume_that_rounds_otherwise_is_told_in_one_line_and_only_where_equal_bits_were_promised(plan):
    assert begun.told_rounding(plan) is None  # nothing begun
    begun.write(Begun("ab" * 32, plan))
    assert begun.told_rounding(replace(plan, checkpoint_every_steps=1, sharding="optimizer")) is None
    assert begun.told_rounding(replace(plan, num_threads=2, device="gpu", compiled=True)) == (
        "begun with train.compiled False, now True, train.device 'cpu', now 'gpu', train.threads_per_worker 1, now 2; "
        "the last bits of the steps from here on are not those of a calm run"
    )
    begun.write(Begun("ab" * 32, replace(plan, reduction="fast")))
    assert begun.told_rounding(replace(plan, reduction="fast", num_threads=2)) is None


def test_the_journal_is_on_the_disk_before_a_checkpoint_is_begun(plan, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink())))
    reporter = training._Reporter(plan, rank=0)
    reporter.on_metrics(1, 64, {"loss": 1.0})
    assert synced == []
    reporter.before_checkpoint()
    assert synced == [str(Path(plan.output) / training.METRICS)]
    reporter.close()
