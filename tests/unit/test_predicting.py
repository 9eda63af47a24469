"""Promises of cluster.recording.predicting and of what gpt_core.training.planning expects of a run."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from cluster.recording.journal import Journal
from cluster.recording.predicting import EXPECTED, actual_figures, record_comparison, write_expectation
from gpt_core.model.presets import PRESETS, ModelShape
from gpt_core.model.product_rate import product_rate
from gpt_core.training.planning import expect, worker_bytes
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


def test_a_run_on_cpus_is_expected_at_60_percent_of_their_products():
    expected = expect(replace(PLAN, device="cpu"), 2, 150e9, 4)
    assert expected.tokens_per_second == pytest.approx(2 * 0.6 * 150e9 / (6 * 124_439_808))
    assert "60% of 150 GFLOP/s a worker, products measured" in expected.rate_from


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


def test_a_finished_run_records_what_was_expected_beside_what_it_reached(run_folder, capsys):
    plan, folder, checkpoint = run_folder
    book: Any = Book()
    record_comparison(book, plan, folder / "metrics.jsonl", checkpoint)
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
    assert "60% of" in book.tags["herd.expected_from"]
    assert "128 tokens/s where" in capsys.readouterr().err


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
    record_comparison(book, plan, folder / "metrics.jsonl", checkpoint)
    assert (book.metrics, book.tables, book.tags) == ({}, {}, {})
