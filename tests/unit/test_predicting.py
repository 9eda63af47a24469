"""Promises of cluster.recording.predicting and of what gpt_core.training.planning expects of a run."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from cluster.recording.journal import Journal
from cluster.recording.predicting import EXPECTED, Foretold, actual_figures, record_comparison, write_expectation
from gpt_core.model.gpt import Block
from gpt_core.model.loss import next_token_loss
from gpt_core.model.presets import PRESETS, ModelShape
from gpt_core.model.product_rate import product_rate
from gpt_core.training.measure_parts import measure_parts
from gpt_core.training.planning import expect, worker_bytes
from gpt_core.training.step_parts import StepParts
from gpt_core.training.training_plan import TrainingPlan

PLAN = TrainingPlan(
    corpus="corpus",
    output="run",
    shape=PRESETS["gpt2"].shape,
    num_steps=100,
    window_tokens=1024,
    batch_sequences=512,
    micro_batch_sequences=32,
    device="gpu",
    precision="bf16",
)
TINY = replace(PLAN, shape=ModelShape(2, 2, 8, 16, 100), window_tokens=16, batch_sequences=8, micro_batch_sequences=2)


class Book:
    """Stands for the job's run: keeps what it is told."""

    def __init__(self):
        self.metrics, self.tables, self.tags = {}, {}, {}

    def log_metrics(self, metrics, *, step, tokens=None):
        self.metrics[step] = metrics

    def log_table(self, rows, name):
        self.tables[name] = rows

    def set_tags(self, tags):
        self.tags |= tags


def test_a_run_on_gpus_is_expected_at_40_percent_of_their_peak():
    # 855.2e6 FLOPs a token (PaLM, GPT-2 at 1,024); 8 x 0.4 x 989e12 / 855.2e6 = 3.70e6 tokens/s
    expected = expect(PLAN, 8, 989e12, 2)
    assert expected.tokens_per_second == pytest.approx(3.70e6, rel=1e-3)
    assert expected.num_tokens == 100 * 512 * 1024
    assert expected.seconds == pytest.approx(100 * 512 * 1024 / 3.70e6, rel=1e-3)  # 14.2 s
    assert expected.worker_hours == pytest.approx(8 * expected.seconds / 3600)
    assert expected.checkpoint_bytes == 12 * 124_439_808


def test_a_run_on_cpus_is_expected_to_take_what_its_parts_take():
    # A token: 2 layers of 72 x 8^2 + 12 x 8 x 16 = 6,144 FLOPs, and 6 x 100 x 8 = 4,800 of the head; at these rates
    # 2 x 100 + 100 us. On 2 workers 2 micro-batches of 32 tokens each: 19.2 ms.
    parts = StepParts(layer_flops_a_second=61.44e6, head_flops_a_second=48e6, moved_bytes_a_second=2688 * 6400)
    # For each of 2,688 parameters 2 x (4 + 8) + 40 = 64 bytes: 10 ms; 4 bytes sent at 1.25 GB/s: 8.6016 us.
    assert parts.step_seconds(TINY, 2, 4) == pytest.approx(19.2e-3 + 10e-3 + 8.6016e-6)
    # bf16: 2 x (2 + 8) + 40 + 6 = 66 bytes; half of the last 46 where the optimizer is shared: 43.
    assert parts.step_seconds(TINY, 2, 2) == pytest.approx(19.2e-3 + 66 / 6400 + 8.6016e-6)
    sharded = replace(TINY, sharding="optimizer")
    assert parts.step_seconds(sharded, 2, 2) == pytest.approx(19.2e-3 + 43 / 6400 + 8.6016e-6)
    # Alone: 4 micro-batches, 38.4 ms, and 4 x 12 + 40 = 88 bytes: 13.75 ms; nothing is sent.
    expected = expect(replace(TINY, device="cpu"), 1, parts, 4)
    assert expected.tokens_per_second == pytest.approx(8 * 16 / (38.4e-3 + 13.75e-3))
    assert expected.seconds == pytest.approx(100 * (38.4e-3 + 13.75e-3))
    assert "layers at 0 GFLOP/s, head at 0, copies at 0 GB/s, measured at the start" in expected.rate_from


def test_the_larger_vocabulary_of_two_models_alike_is_expected_to_be_slower():
    """The head counts at its own rate: at that of the layers a step of the quickstart would seem half as long."""
    parts = StepParts(layer_flops_a_second=200e9, head_flops_a_second=100e9, moved_bytes_a_second=50e9)
    plans = [replace(TINY, shape=ModelShape(4, 4, 128, 128, size), window_tokens=128) for size in (257, 50257)]
    small, large = (parts.step_seconds(plan, 1, 2) for plan in plans)
    # 4 micro-batches x 256 tokens x 6 x 50,000 x 128 FLOPs more, and 6.4M parameters x 86 bytes
    assert large - small == pytest.approx(1024 * 6 * 50_000 * 128 / 100e9 + 6.4e6 * 86 / 50e9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recomputes", [False, True])
def test_the_parts_of_a_step_are_timed_as_the_work_they_are(precision, recomputes):
    torch.set_num_threads(1)
    shape = ModelShape(2, 4, 128, 64, 5000, dropout=0.1)
    plan = replace(TINY, shape=shape, window_tokens=64, precision=precision, activation_checkpointing=recomputes)
    generator = torch.get_rng_state()
    parts = measure_parts(plan)
    assert torch.equal(torch.get_rng_state(), generator)
    assert 1e8 < parts.layer_flops_a_second < 1e13
    assert 1e8 < parts.head_flops_a_second < 1e13
    assert 1e8 < parts.moved_bytes_a_second < 1e13


def test_a_large_model_is_measured_by_a_part_of_it(monkeypatch):
    """Of GPT-2's micro-batch, 32 x 1,024 tokens of 51.9M FLOPs a layer, a try takes 77 tokens, a head of 1,695 ids."""
    seen = []
    block, loss = Block.forward, next_token_loss
    monkeypatch.setattr(Block, "forward", lambda self, x_BTC: seen.append(tuple(x_BTC.shape)) or block(self, x_BTC))
    monkeypatch.setattr(
        "gpt_core.training.measure_parts.next_token_loss",
        lambda hidden, weight, targets: seen.append((*hidden.shape, *weight.shape)) or loss(hidden, weight, targets),
    )
    measure_parts(replace(PLAN, device="cpu", precision="fp32"))
    assert set(seen) == {(1, 77, 768), (1, 512, 768, 1695, 768)}


def test_memory_is_the_sum_of_what_a_worker_keeps():
    # Parameters: 2 x (12 x 64 + 13 x 8) + (100 + 16) x 8 + 16 = 2,688. On 2 workers 2 of 4 micro-batches: 2 levels.
    assert TINY.shape.num_parameters == 2688
    kept = 2 * 16 * 2 * (2 * 16) * 8  # layers x values x bytes x tokens x width
    assert worker_bytes(TINY, 2, 2) == (12 + 2 + 2 + 4 * 2) * 2688 + kept
    recomputed = (2 + 16) * 2 * (2 * 16) * 8
    assert worker_bytes(replace(TINY, activation_checkpointing=True), 2, 2) == 24 * 2688 + recomputed
    assert worker_bytes(replace(TINY, sharding="optimizer"), 2, 2) == (6 + 2 + 2 + 8) * 2688 + kept
    full = replace(TINY, sharding="full", reduction="fast")
    assert worker_bytes(full, 2, 2) == (12 + 4) / 2 * 2688 + 2 * (12 * 64 + 13 * 8 + (100 + 16) * 8) + kept
    assert worker_bytes(replace(TINY, device="cpu"), 2, 4) == 0.5e9 + (12 + 4 + 8 + 12) * 2688 + 2 * kept


def test_products_are_timed_as_the_work_they_are():
    torch.set_num_threads(1)
    rate = product_rate(256, 128, torch.float32)
    assert 1e9 < rate < 1e13


@pytest.fixture
def run_folder(tmp_path):
    plan = replace(TINY, output=str(tmp_path), device="cpu", precision="fp32", num_steps=3)
    write_expectation(plan, 2, 150e9)
    journal = Journal(tmp_path / "metrics.jsonl")
    for step, rate in ((1, 64.0), (2, 128.0), (2, 1.0), (3, 256.0)):  # 128 tokens a step; the second was done twice
        metrics = {"tokens_per_second": rate, "peak_memory_bytes": 1e6 * step, "loss": 1.0}
        journal.append_metrics(metrics, step=step, tokens=128 * step)
    journal.close()
    checkpoint = tmp_path / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights.safetensors").write_bytes(b"x" * 700)
    (checkpoint / "checkpoint.json").write_bytes(b"x" * 50)
    return plan, tmp_path, checkpoint


def test_a_run_that_begins_says_once_what_is_expected_of_it(tmp_path, capsys):
    foretold = Foretold("pretrain", tmp_path)
    foretold.tell()
    assert capsys.readouterr().err == ""
    # GPT-2 124M at 4,667.1 GFLOP/s x 40% / 855.2 MFLOP a token: 2,183 tokens/s; 524,288,000 tokens take 2.8 days.
    write_expectation(replace(PLAN, num_steps=1000, output=str(tmp_path)), 1, 4667.1e9)
    for _ in range(2):
        foretold.tell()
    said = capsys.readouterr().err
    assert said == "pretrain: expecting 2,183 tokens/s, about 2.8 days for 524,288,000 tokens\n"
    Foretold("pretrain", tmp_path).tell()  # of the run that is continued
    assert capsys.readouterr().err == ""


def test_a_finished_run_records_what_was_expected_beside_what_it_reached(run_folder, capsys):
    plan, folder, checkpoint = run_folder
    book: Any = Book()
    record_comparison("finetune", book, plan, folder / "metrics.jsonl", checkpoint)
    written = json.loads((folder / EXPECTED).read_text())
    assert book.metrics[3]["expected/tokens_per_second"] == written["tokens_per_second"]
    assert book.metrics[3]["actual/tokens_per_second"] == 128.0
    assert book.metrics[3]["actual/seconds"] == 2.0 + 1.0 + 0.5
    assert book.metrics[3]["actual/worker_hours"] == 2 * 3.5 / 3600
    assert book.metrics[3]["actual/peak_memory_bytes"] == 3e6
    assert book.metrics[3]["actual/checkpoint_bytes"] == 750
    assert {row["figure"] for row in book.tables["expected_and_actual.json"]} == {
        "tokens_per_second", "seconds", "worker_hours", "peak_memory_bytes", "checkpoint_bytes",
    }  # fmt: skip
    assert "a worker's layers at" in book.tags["herd.expected_from"]
    assert "finetune: 128 tokens/s where" in capsys.readouterr().err


def test_a_run_that_stopped_early_has_the_comparison_at_the_step_it_reached(run_folder):
    plan, folder, checkpoint = run_folder
    book: Any = Book()
    record_comparison("finetune", book, replace(plan, num_steps=100), folder / "metrics.jsonl", checkpoint)
    assert list(book.metrics) == [3]


def test_a_continued_run_keeps_what_was_expected_at_its_start(run_folder):
    plan, folder, _ = run_folder
    before = (folder / EXPECTED).read_bytes()
    write_expectation(plan, 4, 200e9)
    assert (folder / EXPECTED).read_bytes() == before


def test_a_run_without_an_expectation_or_a_journal_records_nothing(run_folder):
    plan, folder, checkpoint = run_folder
    assert actual_figures(folder / "gone.jsonl", checkpoint, 2) is None
    (folder / EXPECTED).write_text("{")
    book: Any = Book()
    record_comparison("finetune", book, plan, folder / "metrics.jsonl", checkpoint)
    assert (book.metrics, book.tables, book.tags) == ({}, {}, {})
