"""lm-evaluation-harness, which nobody here wrote, scores a served checkpoint as it scores the exported one."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.serving import service
from cluster.serving.http_guard import Access
from cluster.session import Cluster
from gpt_core.exchange.huggingface import export_model
from gpt_core.generation.engine import Engine, EngineOptions
from gpt_core.generation.request import GenerationRequest, Sampling
from gpt_core.settings import EngineSettings, ServeSettings
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training import checkpoint
from tests.tiny_checkpoint import write_tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
CONTEXT_TOKENS = 128
TEXT = "the old ship came slowly home while rain fell over seven quiet hills and nobody had told her why"
ROLLING = [TEXT, "A short one.", f"{TEXT.title()}\nÉtait-ce vrai ?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"), num_positions=CONTEXT_TOKENS, vocabulary="gpt2")


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(checkpoint.load(model), tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="module")
def tasks(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multiple-choice task and one of rolling log-likelihoods, each with its rows in a local file."""
    folder = tmp_path_factory.mktemp("tasks")
    shared = {"dataset_path": "json", "test_split": "test"}
    choices = {
        "task": "tiny_choices",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    rolling = {
        "task": "tiny_rolling",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }
    for task, rows in ((choices, _choices(model)), (rolling, [{"text": text} for text in ROLLING])):
        file = folder / f"{task['task']}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        described = {**shared, **task, "dataset_kwargs": {"data_files": {"test": str(file)}}}
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(described))
    return folder


def _choices(model: Path) -> list[dict[str, Any]]:
    """Return rows of a context and four continuations, the first of which is what the model says greedily."""
    loaded, tokenizer = checkpoint.load(model), load_tokenizer("gpt2")
    engine = Engine(loaded.weights, loaded.shape, tokenizer, EngineOptions(slots=4, precision="fp32"))
    rows = []
    words = TEXT.split()
    for end in range(5, len(words)):
        context = " ".join(words[end % 5 : end])
        ids = tuple(tokenizer.encode(context).tolist())
        (done,) = engine.run([GenerationRequest("r", ids, Sampling(max_tokens=3, temperature=0))])
        if tuple(tokenizer.encode(context + done.text).tolist()) == ids + done.token_ids:
            others = [f" {words[end]}", " and then nothing at all", "\n\nNo"]
            rows.append({"context": context, "choices": [done.text, *others], "label": 0})
    assert len(rows) > 4
    return rows


@pytest.fixture(scope="module")
def address(model: Path, cluster: Cluster) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    engine = EngineSettings(num_slots=8, precision="fp32", device="cpu")
    served = ServeSettings(checkpoint=str(model), port=port, engine=engine, page=False)
    with service.running(served, service.resolve(served), Access(None, None), cluster) as running:
        yield running


@pytest.fixture(scope="module")
def http_arguments(address: str, exported: Path) -> str:
    """What the harness is told of the service, as docs/evaluation.md has it."""
    arguments = f"model=gpt-herd,base_url={address}/v1/completions,tokenizer_backend=huggingface,tokenizer={exported}"
    return f"{arguments},max_length={CONTEXT_TOKENS}"


def harness(tasks: Path, output: Path, *words: str) -> dict[str, list[tuple[float, str]]]:
    """Run `lm_eval` and return each task's log-likelihoods, with greedy flags, in the order of rows and choices."""
    shared = ["--include_path", str(tasks), "--tasks", "tiny_choices,tiny_rolling", "--log_samples"]
    home = {"HF_HOME": str(output / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": ""}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *words, *shared, "--output_path", str(output)],
        env={**os.environ, **home, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {task: _scores(output, task) for task in ("tiny_choices", "tiny_rolling")}


def _scores(output: Path, task: str) -> list[tuple[float, str]]:
    (file,) = output.rglob(f"samples_{task}_*.jsonl")
    samples = sorted((json.loads(line) for line in file.open()), key=lambda sample: sample["doc_id"])
    scores = []
    for sample in samples:
        for response in sample["resps"]:
            values = response[0] if isinstance(response[0], list) else response
            scores.append((float(values[0]), str(values[1]) if len(values) > 1 else ""))
    return scores


@pytest.fixture(scope="module")
def by_transformers(exported: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    words = ("--model", "hf", "--model_args", f"pretrained={exported},dtype=float32", "--device", "cpu")
    return harness(tasks, tmp_path_factory.mktemp("hf"), *words)


@pytest.mark.parametrize(("concurrency", "batch_size"), [(1, 1), (16, 4)])
def test_log_likelihoods_through_http_are_those_of_transformers_and_greedy_flags_too(
    by_transformers: dict[str, Any], http_arguments: str, tasks: Path, tmp_path: Path, concurrency: int, batch_size: int
) -> None:
    arguments = f"{http_arguments},num_concurrent={concurrency}"
    words = ("--model", "local-completions", "--model_args", arguments, "--batch_size", str(batch_size))
    through_http = harness(tasks, tmp_path, *words)
    for task, expected in by_transformers.items():
        found = through_http[task]
        assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4, rel=0)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in by_transformers["tiny_choices"]} == {"True", "False"}
