"""Promises of gpt_core.training.loop: the same bits on any ranks, whatever is stopped, killed and resumed."""

import os
import time
import warnings
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from gpt_core.errors import CheckpointError, ResourceError, SettingsError
from gpt_core.model.precision import can_compute_bf16
from gpt_core.model.presets import ModelShape
from gpt_core.sole_writer import sole_writer
from gpt_core.training import checkpoint
from gpt_core.training import loop as training
from gpt_core.training.learner import Learner
from gpt_core.training.loop import train
from gpt_core.training.observer import Silence
from gpt_core.training.recompute_step import replay
from gpt_core.training.reduction import Ranks
from gpt_core.training.schedule import Recipe
from tests.unit import tiny_corpus
from tests.unit.gloo_ranks import run_on_ranks
from tests.unit.tiny_run import NUM_STEPS, Recorder, digest_of, logged, tiny_plan, train_and_tell


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    tiny_corpus.build(folder)
    return folder


@pytest.fixture
def plan(corpus, tmp_path):
    return tiny_plan(corpus, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_is_the_same_bits_on_1_2_and_4_ranks_and_when_they_change_in_mid_run(plan, tmp_path, precision):
    if precision == "bf16" and not can_compute_bf16(torch.device("cpu")):
        pytest.skip("this CPU has no bf16 instructions; run on one with AVX512-BF16 or AMX")
    plan = replace(plan, precision=precision)
    calm = train_and_tell(Ranks(), plan)
    assert len(calm[0]) == NUM_STEPS
    for num_ranks in (2, 4):
        other = replace(plan, output=str(tmp_path / f"on-{num_ranks}"))
        assert run_on_ranks(num_ranks, tmp_path, train_and_tell, other) == [calm] * num_ranks
    changing = replace(plan, output=str(tmp_path / "changing"))
    told = {}
    for num_ranks, stop_after in ((4, 2), (2, 1), (1, 1), (2, None)):
        results = run_on_ranks(num_ranks, tmp_path, train_and_tell, changing, stop_after)
        told |= results[0][0]
    assert told == calm[0]
    assert digest_of(changing.output) == calm[1]


@pytest.mark.parametrize("die_after", [1, 3, 4])
def test_a_killed_and_resumed_run_logs_and_saves_what_the_calm_one_does(plan, tmp_path, die_after):
    calm = train_and_tell(Ranks(), plan)
    hurt = replace(plan, output=str(tmp_path / "hurt"), checkpoint_every_steps=2)
    first, second = Recorder(die_after=die_after), Recorder()
    with pytest.raises(KeyboardInterrupt):
        train(hurt, observer=first)
    summary = train(hurt, observer=second)
    assert logged(first) | logged(second) == calm[0]
    assert digest_of(hurt.output) == calm[1]
    assert summary.resumed_from == (die_after - 1) // 2 * 2


def kill_in_mid_write(ranks, plan, victim):
    """Die as by SIGKILL after a file of the second checkpoint is written and before its rename."""
    write_tensors, calls = checkpoint.write_tensors, []

    def dying(file, tensors):
        calls.append(file.name)
        if len(calls) > 2 and file.name.endswith(victim):
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), 9)
        return write_tensors(file, tensors)

    checkpoint.write_tensors = dying
    train(plan, ranks)


@pytest.mark.parametrize("victim", ["weights.safetensors", "optimizer.safetensors"])
def test_a_kill_while_a_checkpoint_is_written_costs_only_that_checkpoint(plan, tmp_path, victim):
    calm = train_and_tell(Ranks(), plan)
    hurt = replace(plan, output=str(tmp_path / "hurt"), checkpoint_every_steps=2)
    assert run_on_ranks(1, tmp_path, kill_in_mid_write, hurt, victim, killed=True) == [None]
    recorder = Recorder()
    assert train(hurt, observer=recorder).resumed_from == 2
    assert {**calm[0], **logged(recorder)} == calm[0]
    assert digest_of(hurt.output) == calm[1]


def test_a_disk_that_fills_up_stops_the_run_and_costs_nothing_that_was_committed(plan, tmp_path, monkeypatch):
    calm = train_and_tell(Ranks(), plan)
    hurt = replace(plan, output=str(tmp_path / "hurt"), checkpoint_every_steps=2)
    write_tensors, calls = checkpoint.write_tensors, []

    def filling(file, tensors):
        calls.append(file.name)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return write_tensors(file, tensors)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_tensors", filling)
        with pytest.raises(CheckpointError, match="No space left on device"):
            train(hurt)
    assert train(hurt).resumed_from == 2
    assert digest_of(hurt.output) == calm[1]


def test_a_request_to_stop_leaves_a_checkpoint_to_go_on_from(plan):
    stopped = train(plan, observer=Recorder(stop_after=3))
    assert (stopped.step, stopped.stopped) == (3, True)
    assert checkpoint.list_paths(plan.output)[-1].name == "step-00000003"
    recorder = Recorder()
    ended = train(plan, observer=recorder)
    assert (ended.step, ended.stopped, ended.resumed_from) == (NUM_STEPS, False, 3)
    assert sorted(recorder.metrics) == [4, 5, 6]


def test_a_finished_run_is_left_as_it_is(plan):
    first = train(plan)
    again = train(plan, observer=Recorder())
    assert again.resumed_from == again.step == NUM_STEPS
    assert again.metrics == first.metrics


def test_checkpoints_come_on_time_and_only_the_last_and_the_best_stay(plan):
    recorder = Recorder()
    train(replace(plan, checkpoint_every_steps=1, keep_checkpoints=2), observer=recorder)
    assert recorder.checkpoints == [1, 2, 3, 4, 5, 6]
    kept = [checkpoint.read_description(path) for path in checkpoint.list_paths(plan.output)]
    assert [d.step for d in kept][-2:] == [5, 6]
    best = min(m["validation_loss"] for m in recorder.metrics.values() if "validation_loss" in m)
    assert min(d.metrics.get("validation_loss", 99.0) for d in kept) == best


def test_the_best_evaluation_is_kept_where_no_checkpoint_was_due(plan):
    """The rate is far too high, so that the best is not the last."""
    recorder = Recorder()
    recipe = Recipe(learning_rate=0.3, decay_tokens=NUM_STEPS * 64)
    train(replace(plan, recipe=recipe, evaluate_every_steps=1, keep_checkpoints=1), observer=recorder)
    losses = {step: metrics["validation_loss"] for step, metrics in recorder.metrics.items()}
    best = min(losses, key=lambda step: losses[step])
    assert best < NUM_STEPS
    assert [path.name for path in checkpoint.list_paths(plan.output)] == [f"step-{best:08d}", f"step-{NUM_STEPS:08d}"]


def test_the_rate_of_a_cpus_products_is_measured_once_a_start_and_not_in_a_replay(plan, monkeypatch):
    measured = Mock(return_value=1e9)
    monkeypatch.setattr("gpt_core.training.step_metrics.product_rate", measured)
    told = []

    class Listener(Recorder):
        def on_start(self, plan, flops_a_second):
            told.append((plan.precision, flops_a_second))

    recorder = Listener()
    train(replace(plan, precision="fp32"), observer=recorder)
    assert told == [("fp32", 1e9)]
    share = recorder.metrics[1]["mfu_palm_of_measured_products"]
    assert share * 1e9 == pytest.approx(recorder.metrics[1]["tokens_per_second"] * plan.shape.flops_a_token(8))
    replay(plan.output, 2)
    assert measured.call_count == 1


def test_metrics_have_what_a_person_watches(plan):
    recorder = Recorder()
    summary = train(replace(plan, recipe=Recipe(learning_rate=3e-2)), observer=recorder)
    assert recorder.metrics[1].keys() >= {
        "loss", "grad_norm", "learning_rate", "tokens_per_second", "data_wait_share", "peak_memory_bytes",
    }  # fmt: skip
    assert "mfu_palm" not in recorder.metrics[1]  # there is no published peak of a CPU
    assert 0 < recorder.metrics[1]["mfu_palm_of_measured_products"] < 2
    assert [step for step, m in recorder.metrics.items() if "validation_loss" in m] == [2, 4, 6]
    assert summary.tokens == NUM_STEPS * 8 * 8
    assert recorder.metrics[6]["learning_rate"] == pytest.approx(3e-3)


def test_a_step_can_be_recomputed_to_the_last_bit(plan, tmp_path):
    recorder = Recorder()
    train(replace(plan, checkpoint_every_steps=2, keep_checkpoints=9), observer=recorder)
    for step in range(1, NUM_STEPS + 1):
        report = replay(plan.output, step)
        assert (report.loss, report.grad_norm) == (
            recorder.metrics[step]["loss"],
            recorder.metrics[step]["grad_norm"],
        )


def test_a_ramped_run_sees_each_row_once_and_counts_its_tokens(plan):
    ramped = replace(plan, ramp_start_sequences=2, ramp_tokens=200, reduction="exact")
    summary = train(ramped)
    assert summary.tokens == ramped.tokens_after(NUM_STEPS)
    run = training.Run(ramped, Ranks(), Silence())
    rows, tokens = [], 0
    for _ in range(NUM_STEPS):
        rows += run.windows.rows(tokens).tolist()
        tokens += run.windows.step_tokens(tokens)
    assert rows == list(range(summary.tokens // 8))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"batch_sequences": 16}, "train.batch_sequences 8"),
        ({"seed": 6}, "train.seed 5"),
        (
            {"recipe": Recipe(learning_rate=2e-2, warmup_tokens=100, decay_tokens=NUM_STEPS * 64)},
            "recipe.learning_rate 0.01",
        ),
        ({"shape": ModelShape(1, 2, 16, 8, 1000, dropout=0.1)}, "model.n_layer 2"),
    ],
)
def test_an_output_folder_of_another_run_is_refused_naming_the_difference(plan, change, name):
    train(replace(plan, num_steps=1))
    with pytest.raises(CheckpointError, match=f"a run begun with {name}"):
        train(replace(plan, **change))


def test_a_run_killed_before_its_first_checkpoint_keeps_its_folder_from_another(plan):
    with pytest.raises(KeyboardInterrupt):
        train(plan, observer=Recorder(die_after=1))
    assert checkpoint.list_paths(plan.output) == []
    with pytest.raises(CheckpointError, match=r"a run begun with train.seed 5; expected the 99 of this run"):
        train(replace(plan, seed=99))
    assert train(plan).resumed_from == 0


def test_settings_that_fail_before_anything_is_logged_can_be_changed(plan, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "take_step", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            train(plan)
    train(replace(plan, micro_batch_sequences=1))


def test_a_run_that_is_lengthened_at_the_rate_its_schedule_ends_with_keeps_the_bits_it_had(plan, tmp_path):
    free = replace(plan, recipe=replace(plan.recipe, decay_tokens=None), num_steps=4)
    first, second = Recorder(), Recorder()
    train(free, observer=first)
    longer = replace(free, recipe=plan.recipe, num_steps=NUM_STEPS)
    with pytest.raises(CheckpointError, match=r"recipe\.decay_tokens to 256"):
        train(longer)
    longer = replace(longer, recipe=replace(plan.recipe, decay_tokens=4 * 64))
    assert train(longer, observer=second).resumed_from == 4
    calm = train_and_tell(Ranks(), replace(longer, output=str(tmp_path / "calm")))
    assert logged(first) | logged(second) == calm[0]


def test_another_corpus_is_refused_on_resume(plan, tmp_path):
    train(replace(plan, num_steps=1))
    tokenizer = tiny_corpus.TokenizerEntry("bytes", "ee" * 32, 1000, 999)
    other = tiny_corpus.build(tmp_path / "other", tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match=r"a run begun with corpus '[0-9a-f]{64}'"):
        train(replace(plan, corpus=str(other.folder)))


def test_a_damaged_newest_checkpoint_is_passed_over_and_its_steps_are_trained_again(plan):
    recorder = Recorder()
    train(replace(plan, checkpoint_every_steps=2, keep_checkpoints=9), observer=recorder)
    whole = digest_of(plan.output)
    file = Path(str(checkpoint.list_paths(plan.output)[-1]), "optimizer.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.warns(checkpoint.DamagedCheckpointWarning):
        summary = train(plan)
    assert summary.resumed_from == 4
    assert digest_of(plan.output) == whole


def test_checkpoints_stay_as_they_are_where_another_run_is_refused(plan):
    train(replace(plan, checkpoint_every_steps=1, keep_checkpoints=9))
    damaged = Path(str(checkpoint.path_of(plan.output, 6)))
    (damaged / "weights.safetensors").write_bytes(b"")
    with pytest.warns(checkpoint.DamagedCheckpointWarning), pytest.raises(CheckpointError, match=r"train\.seed"):
        train(replace(plan, seed=6))
    assert damaged.is_dir()


def test_what_a_kill_left_half_written_is_gone_once_the_run_goes_on(plan):
    train(replace(plan, checkpoint_every_steps=2), observer=Recorder(stop_after=2))
    half = Path(plan.output, "checkpoints", "aside-step-00000004")
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    run = training.Run(plan, Ranks(), Silence())
    run.resume(before=2)
    assert half.exists()  # a replay writes nothing
    run.resume()
    assert not half.exists()


def test_a_vocabulary_that_is_not_the_corpuss_is_refused(plan):
    with pytest.raises(SettingsError, match="1000, that of the corpus's tokenizer"):
        train(replace(plan, shape=ModelShape(2, 2, 16, 8, 50257)))


def test_a_gpu_that_is_not_there_is_refused(plan):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU; run on one without")
    with pytest.raises(ResourceError, match="no GPU in this process"):
        train(replace(plan, device="gpu"))


def test_ranks_that_cannot_share_a_step_are_refused_before_any_work(plan):
    with pytest.raises(SettingsError, match="8 workers for 4 micro-batches"):
        train(plan, Ranks(0, 8))


def test_a_corpus_without_a_held_out_split_warns_and_trains(plan, tmp_path):
    entries = tiny_corpus.build(tmp_path / "whole").entries
    train_only = [entry for entry in entries if entry.split != "validation"]
    corpus = tiny_corpus.build(tmp_path / "train-only", shards=train_only, num_documents_in=242)
    with pytest.warns(UserWarning, match="no validation split"):
        summary = train(replace(plan, corpus=str(corpus.folder), num_steps=1))
    assert "validation_loss" not in summary.metrics
    with warnings.catch_warnings():
        train(replace(plan, corpus=str(corpus.folder), num_steps=1, evaluate_every_steps=None))


def test_held_out_documents_shorter_than_a_window_warn_and_train(plan):
    longer = replace(
        plan, shape=replace(plan.shape, num_positions=512), window_tokens=512, batch_sequences=4, num_steps=1
    )
    with pytest.warns(UserWarning, match="a validation split shorter than a window of 512 tokens: no validation loss"):
        summary = train(longer)
    assert "validation_loss" not in summary.metrics


def test_what_was_told_is_made_durable_before_the_checkpoint_behind_it_and_memory_holds_one_snapshot(plan, monkeypatch):
    order = []
    write, snapshot = checkpoint.write, Learner.snapshot

    def slow_write(run_folder, description, *tensors):
        time.sleep(0.05)
        path = write(run_folder, description, *tensors)
        order.append(f"written {description.step}")
        return path

    def watched_snapshot(learner):
        order.append(f"snapshot {learner.step}")
        return snapshot(learner)

    class Watcher(Silence):
        def before_checkpoint(self):
            order.append("synced")

    monkeypatch.setattr(checkpoint, "write", slow_write)
    monkeypatch.setattr(Learner, "snapshot", watched_snapshot)
    train(replace(plan, num_steps=2, checkpoint_every_steps=1), observer=Watcher())
    without_syncs = [event for event in order if event != "synced"]
    assert without_syncs == ["snapshot 1", "written 1", "snapshot 2", "written 2"]
    assert order.index("synced") < order.index("written 1")
    assert order.count("synced") == 2
    assert "synced" in order[order.index("snapshot 1") : order.index("written 2")]


def test_checkpoints_by_the_clock_change_no_bit(plan):
    recorder = Recorder()
    summary = train(replace(plan, checkpoint_every_seconds=1e-9, keep_checkpoints=9), observer=recorder)
    assert recorder.checkpoints == list(range(1, NUM_STEPS + 1))
    digest = digest_of(plan.output)
    assert summary.step == NUM_STEPS
    other = replace(plan, output=plan.output + "-other")
    train(other)
    assert digest_of(other.output) == digest


def test_a_damaged_newest_checkpoint_does_not_cost_the_one_written_next(plan):
    """A damaged one of a later step, counted among the newest, would have the whole ones pruned."""
    train(replace(plan, num_steps=5, checkpoint_every_steps=1, keep_checkpoints=2))
    for path in checkpoint.list_paths(plan.output):
        if path.name > "step-00000003":
            Path(str(path), "weights.safetensors").write_bytes(b"")
    recorder = Recorder(stop_after=1)
    with pytest.warns(checkpoint.DamagedCheckpointWarning):
        summary = train(replace(plan, keep_checkpoints=1), observer=recorder)
    assert summary.stopped
    assert checkpoint.list_paths(plan.output)[-1].name == f"step-{summary.step:08d}"
    train(plan)  # warns of nothing


def test_a_second_trainer_of_one_folder_is_refused(plan, monkeypatch):
    monkeypatch.setattr(training, "LOCK_PATIENCE_SECONDS", 0.2)
    with (
        sole_writer(plan.output, training.LOCK, 0),
        pytest.raises(ResourceError, match="expected one job at a time in an output folder"),
    ):
        train(plan)
    train(plan)
