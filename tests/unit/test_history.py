"""Promises of gpt_core.training.history and of `herd replay` and `herd compare`."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.recording.journal import Journal
from gpt_core.errors import CheckpointError, RunFailedError, SettingsError
from gpt_core.model.presets import ModelShape
from gpt_core.settings import CompareSettings, ReplaySettings
from gpt_core.training import checkpoint, history, recompute_step
from gpt_core.training.checkpoint import Description
from gpt_core.training.loop import train
from gpt_core.training.observer import Silence
from gpt_core.training.schedule import Recipe
from gpt_core.training.training_plan import TrainingPlan
from jobs import compare, replay
from tests.unit import tiny_corpus

NUM_STEPS = 30


def write_run(plan: TrainingPlan) -> Path:
    """Train, logging as a worker does."""
    output = Path(plan.output)
    journal = Journal(output / history.JOURNAL)

    class Logged(Silence):
        def on_metrics(self, step, tokens, metrics):
            journal.append_metrics(metrics, step=step, tokens=tokens)

    train(plan, observer=Logged())
    journal.close()
    return output


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> TrainingPlan:
    corpus = tmp_path_factory.mktemp("corpus")
    tiny_corpus.build(corpus)
    return TrainingPlan(
        corpus=str(corpus),
        output=str(tmp_path_factory.mktemp("runs") / "first"),
        shape=ModelShape(1, 2, 16, 8, tiny_corpus.END_OF_TEXT + 1, dropout=0.1),
        num_steps=NUM_STEPS,
        window_tokens=8,
        batch_sequences=8,
        micro_batch_sequences=2,
        recipe=Recipe(learning_rate=1e-2),
        checkpoint_every_steps=5,
        keep_checkpoints=4,
    )


@pytest.fixture(scope="module")
def run(plan) -> Path:
    return write_run(plan)


def test_twenty_random_steps_recomputed_are_the_logged_ones_to_the_last_bit(run):
    for step in random.Random(3).sample(range(1, NUM_STEPS + 1), 20):
        said = replay.main(ReplaySettings(run=str(run), step=step))
        assert said.count("equal to the logged one") == 2


def test_a_step_is_recomputed_equal_on_two_processes(run):
    said = replay.main(ReplaySettings(run=str(run), step=17, num_workers=2))
    assert said.count("equal to the logged one") == 2


def test_a_logged_number_that_was_changed_is_found(run, tmp_path):
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "checkpoints").symlink_to(run / "checkpoints")
    lines = (run / history.JOURNAL).read_text().splitlines(keepends=True)
    digit = lines[11].index('"grad_norm":') + len('"grad_norm":0.123')
    lines[11] = lines[11][:digit] + str((int(lines[11][digit]) + 1) % 10) + lines[11][digit + 1 :]
    (changed / history.JOURNAL).write_text("".join(lines))
    with pytest.raises(RunFailedError, match=r"step 12 of .*: found grad_norm .*; expected the logged "):
        replay.main(ReplaySettings(run=str(changed), step=12))
    parting = history.compare(str(run), str(changed))
    assert (parting.settings, parting.corpus, parting.first_step, parting.num_common) == ((), None, 12, NUM_STEPS)
    assert "part at step 12: grad_norm" in compare.main(CompareSettings(runs=(str(run), str(changed))))


def test_a_step_that_was_never_logged_is_refused(run):
    with pytest.raises(SettingsError, match="step: found 31; expected one from 1 to 30"):
        replay.main(ReplaySettings(run=str(run), step=31))


def test_a_copy_of_a_run_parts_nowhere(run):
    said = compare.main(CompareSettings(runs=(str(run), str(run))))
    assert "equal in all that decides results" in said
    assert "equal to the last bit in all 30 that both logged" in said


def test_a_run_with_another_seed_parts_at_its_first_step(run, plan, tmp_path):
    other = write_run(replace(plan, seed=9, num_steps=4, output=str(tmp_path / "other")))
    parting = history.compare(str(run), str(other))
    # Without decay_tokens the decay ends with the run: 8 sequences of 8 tokens a step.
    assert parting.settings == (("recipe.decay_tokens", 30 * 64, 4 * 64), ("train.seed", 0, 9))
    assert (parting.first_step, parting.num_common, parting.steps) == (1, 4, (30, 4))


def test_runs_that_compute_in_other_ways_are_not_called_equal(run, tmp_path):
    ours = checkpoint.load(run).description
    changes = {"reduction": "fast", "compiled": True, "num_threads": 2, "evaluate_sequences": 9}
    changes |= {"precision": "bf16", "device": "gpu", "sharding": "full"}
    folders = tmp_path / "one", tmp_path / "other"
    for folder, differing in zip(folders, ({"precision": "fp32"}, changes), strict=True):
        checkpoint.write(folder, replace(ours, settings={**ours.settings, **differing}), {}, {})
        (folder / history.JOURNAL).symlink_to(run / history.JOURNAL)
    said = compare.main(CompareSettings(runs=tuple(map(str, folders)))).splitlines()
    assert {line.partition("settings")[2].strip() for line in said if "settings" in line} == {
        "train.compiled: False and True",
        "train.device: 'cpu' and 'gpu'",
        "train.evaluate_sequences: 64 and 9",
        "train.precision: 'fp32' and 'bf16'",
        "train.reduction: 'exact' and 'fast'",
        "train.sharding: 'none or optimizer' and 'full'",
        "train.threads_per_worker: 1 and 2",
    }


def test_steps_that_one_journal_lacks_are_told(run, tmp_path):
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    lines = (run / history.JOURNAL).read_text().splitlines(keepends=True)
    (tmp_path / history.JOURNAL).write_text("".join(lines[:11] + lines[14:]))
    said = compare.main(CompareSettings(runs=(str(run), str(tmp_path))))
    assert "  missing    3 steps of the second run's journal, step 12 first\n" in said
    assert "equal to the last bit in all 27 that both logged" in said


class Killed(Silence):
    """Dies after three steps, before the first checkpoint."""

    def __init__(self, output):
        self.journal = Journal(Path(output) / history.JOURNAL)

    def on_metrics(self, step, tokens, metrics):
        self.journal.append_metrics(metrics, step=step, tokens=tokens)
        if step == 3:
            raise KeyboardInterrupt


def test_a_run_that_was_killed_before_its_first_checkpoint_can_be_compared_and_replayed(run, plan, tmp_path):
    short = replace(plan, output=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        train(short, observer=Killed(tmp_path))
    assert "equal to the last bit in all 3 that both" in compare.main(CompareSettings(runs=(str(run), str(tmp_path))))
    assert replay.main(ReplaySettings(run=str(tmp_path), step=2)).count("equal to the logged one") == 2


def test_a_step_is_recomputed_with_the_settings_it_was_trained_with(plan, tmp_path):
    first = replace(plan, recipe=replace(plan.recipe, decay_tokens=640), keep_checkpoints=9, output=str(tmp_path))
    write_run(replace(first, num_steps=6))
    write_run(replace(first, num_steps=11, num_threads=2))
    for step, num_threads in ((3, 1), (6, 1), (11, 2)):
        replay.main(ReplaySettings(run=str(tmp_path), step=step))
        assert torch.get_num_threads() == num_threads


def test_an_imported_model_is_no_run(run, tmp_path):
    checkpoint.write(tmp_path, Description(0, 0, ModelShape(1, 2, 16, 8, 256)), {}, {})
    (tmp_path / history.JOURNAL).touch()
    for call in (lambda: history.compare(str(run), str(tmp_path)), lambda: recompute_step.replay(str(tmp_path), 1)):
        with pytest.raises(CheckpointError, match=r"found an imported model; .*`herd finetune --checkpoint`"):
            call()


def test_a_folder_that_is_no_run_is_named(tmp_path, run):
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        history.compare(str(run), str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no metrics\.jsonl"):
        history.logged_steps(str(tmp_path))


def test_a_torn_line_is_passed_over_and_the_first_of_two_equal_steps_counts(tmp_path):
    line = '{{"do":"metrics","step":{step},"metrics":{{"loss":{loss}}}}}\n'
    text = line.format(step=1, loss=2.5) + '{"do":"metr\n' + line.format(step=1, loss=9.0) + line.format(step=2, loss=1)
    (tmp_path / history.JOURNAL).write_text(text)
    assert {step: found.values["loss"] for step, found in history.logged_steps(str(tmp_path)).items()} == {1: 2.5, 2: 1}
