"""Promises of gpt_core.training.history and of `herd replay` and `herd compare`."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.recording.journal import Journal
from gpt_core.errors import CheckpointError, RunFailedError, SettingsError
from gpt_core.model.presets import ModelShape
from gpt_core.settings import CompareSettings, ReplaySettings
from gpt_core.training import history
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
    assert (parting.settings, parting.corpus, parting.first_step, parting.last_common) == (None, None, 12, NUM_STEPS)
    assert "part at step 12: grad_norm" in compare.main(CompareSettings(runs=(str(run), str(changed))))


def test_a_step_that_was_never_logged_is_refused(run):
    with pytest.raises(SettingsError, match="step: found 31; expected one from 1 to 30"):
        replay.main(ReplaySettings(run=str(run), step=31))


def test_a_copy_of_a_run_parts_nowhere(run):
    said = compare.main(CompareSettings(runs=(str(run), str(run))))
    assert "equal in all that decides results" in said
    assert "equal to the last bit up to step 30" in said


def test_a_run_with_another_seed_parts_at_its_first_step(run, plan, tmp_path):
    other = write_run(replace(plan, seed=9, num_steps=4, output=str(tmp_path / "other")))
    parting = history.compare(str(run), str(other))
    assert parting.settings is not None
    assert parting.settings[0] in ("train.num_steps", "train.seed")
    assert (parting.first_step, parting.last_common, parting.steps) == (1, 4, (30, 4))


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
