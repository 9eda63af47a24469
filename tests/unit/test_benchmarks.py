"""Promises of the benchmarks that no measurement shows."""

import re
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu_train, ray_overhead, train_step
from gpt_core.model import precision
from gpt_core.model.presets import PRESETS, ModelShape
from gpt_core.training.training_plan import TrainingPlan

_REFUSING = """
import sys

REFUSED = "mlflow orjson pyarrow pydantic ray safetensors tiktoken xxhash yaml".split()

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
"""
_TRAIN = """
import benchmarks.gpu_train
for reduction in ("fast", "exact"):
    words = "--device cpu --shape 1 2 16 8 50 --sequences 3 --accumulate 2 --rounds 1 --contestants ours-eager"
    benchmarks.gpu_train.main([*words.split(), "--reduction", reduction, "--profile"])
"""


_GENERATE = """
import argparse
import benchmarks.gpu_generate
from gpt_core.model.presets import ModelShape
asked = argparse.Namespace(
    preset="tiny", sequences=3, new_tokens=4, rounds=1, device="cpu", peers=PEERS, profile=not PEERS
)
print(benchmarks.gpu_generate.measure(ModelShape(1, 2, 16, 64, 300), asked)["ours"] > 0)
"""


def said(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_gpu_benchmark_needs_torch_and_numpy_alone():
    told = said(_REFUSING + _TRAIN)
    assert told.count("  ours-eager") == told.count("a step of ours-eager:") == 2
    assert "aten::" in told
    assert "1x2x16x8x50, CPU" in told
    assert "MFU not known" in told


def test_the_gpu_benchmark_of_generation_needs_torch_alone():
    told = said(f"{_REFUSING}PEERS = []\n{_GENERATE}")
    assert told.endswith("True\n")
    assert "aten::" in told


@pytest.mark.slow
def test_the_gpu_benchmark_of_generation_measures_hugging_face_beside_it():
    pytest.importorskip("transformers", reason="pip install transformers (a dev dependency)")
    told = said(f"PEERS = ['generate']\n{_GENERATE}")
    assert "ours / generate" in told
    assert "not measured" not in told


def test_the_gpu_benchmark_states_its_mfu_by_the_formula_it_names(monkeypatch):
    # GPT-2 at 1,024 tokens: 6 x (124,439,808 - 786,432) + 12 x 12 x 768 x 1024 = 855.2e6 FLOPs a token
    monkeypatch.setattr(gpu_train, "peak_flops", lambda device: 989e12)
    line = gpu_train._line(468_000, PRESETS["gpt2"].shape, torch.device("cpu"))
    expected = "468,000 tokens/s, 400.2 TFLOP/s, 40.5% MFU (PaLM, 6 N + 12 L d T, of 989 TFLOP/s dense bf16)"
    assert line.strip() == expected


@pytest.mark.slow
def test_the_gpu_benchmarks_peer_learns_on_a_cpu_too(capsys):
    pytest.importorskip("transformers", reason="pip install transformers (a dev dependency)")
    words = "--device cpu --shape 1 2 16 8 50 --sequences 2 --accumulate 2 --rounds 1 --contestants hf ours-eager"
    gpu_train.main([*words.split()])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["hf", "ours-eager"]


def test_the_bench_of_a_step_prints_ceilings_and_its_share_of_them():
    words = "--quick --model tiny --contestants ours"
    command = [sys.executable, "-m", "benchmarks.train_step", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"ceiling fp32: [1-9]\d* GFLOP/s", done.stdout)
    assert re.search(r"ceiling bf16: \d+ GFLOP/s", done.stdout)
    assert re.search(r"ours +[\d,]+ tokens/s, .* of the (fp32|bf16) ceiling", done.stdout)


def test_ours_takes_part_once_for_each_precision_named(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_has", lambda question: True)
    names = train_step._in_each_precision("ours-compiled", ["auto", "fp32", "bf16"])
    assert names == ["ours-compiled", "ours-compiled-fp32", "ours-compiled-bf16"]
    assert [train_step._dtype_name(name) for name in names[1:]] == ["fp32", "bf16"]
    assert train_step._in_each_precision("hf-bf16", ["fp32"]) == ["hf-bf16"]


def test_the_rate_under_ray_counts_all_time_between_steps_but_not_the_start():
    plan = TrainingPlan("corpus", "run", ModelShape(1, 1, 8, 8, 16), 20, 8, 4, 2)
    # The first step ends after 100 s, each later one 0.5 s after its predecessor.
    steps = [(100.0 + 0.5 * step, {"data_wait_share": 0.9 if step < 2 else 0.004}) for step in range(20)]
    found = ray_overhead.measured(plan, steps)
    assert found.tokens_per_second == pytest.approx(4 * 8 / 0.5)
    assert found.data_wait_share == pytest.approx(0.004)
