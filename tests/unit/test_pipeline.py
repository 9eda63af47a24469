"""What `herd pipeline` finds before its first stage, and `herd evaluate` before Ray starts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import evaluating
from cluster.pipeline import check_stages
from cluster.session import require_own_cpus
from cluster.stages import run_alone
from gpt_core.errors import CorpusError, ResourceError, SettingsError
from gpt_core.settings import ClusterSettings, EvaluateSettings, PipelineJob, PretrainJob, TrainSettings
from jobs.command_line.loader import load
from tests.tiny_checkpoint import write_tiny_checkpoint
from tests.tiny_corpus import write_tiny_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Load the quickstart's settings with flags, as from the folder of the project."""
    monkeypatch.chdir(ROOT)

    def loaded(*words: str) -> PipelineJob:
        argv = ["--config", "jobs/configs/quickstart.yaml", "--output", str(tmp_path / "out"), *words]
        return load(PipelineJob, argv, "herd pipeline")

    return loaded


def test_the_quickstart_passes_every_check_as_it_stands(quickstart: Any) -> None:
    check_stages(quickstart())


def test_the_settings_of_the_shakespeare_example_load_with_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    job = load(PipelineJob, ["--config", "jobs/configs/shakespeare_char.yaml", "--tokenize.input", "text.txt"])
    train = job.pretrain.train
    assert (train.num_steps, train.batch_sequences, job.pretrain.model.num_positions) == (2000, 12, 64)


def test_an_empty_prompts_file_is_found_before_the_first_stage(quickstart: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").touch()
    with pytest.raises(CorpusError, match=r"prompts.txt: found no prompt .*; expected a prompt a line or row; add one"):
        check_stages(quickstart("--generate.prompts", str(tmp_path / "prompts.txt")))


def test_a_missing_task_file_is_found_before_the_first_stage(quickstart: Any) -> None:
    with pytest.raises(CorpusError, match=r"nowhere.jsonl"):
        check_stages(quickstart("--evaluate.tasks", "hellaswag=nowhere.jsonl"))


def test_another_vocabulary_than_the_tokenizers_is_found_before_the_first_stage(quickstart: Any) -> None:
    with pytest.raises(SettingsError, match=r"model.vocabulary_size: found 1000; expected 50257"):
        check_stages(quickstart("--pretrain.model.vocabulary_size", "1000"))


def test_a_missing_corpus_of_another_place_is_found_before_the_first_stage(quickstart: Any, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"elsewhere"):
        check_stages(quickstart("--pretrain.corpus", str(tmp_path / "elsewhere")))


def test_more_workers_than_cpus_are_found_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    require_own_cpus(ClusterSettings(num_cpus=2), 2, "train.num_workers")
    with pytest.raises(
        ResourceError, match=r"^train.num_workers: found a need of 64 CPUs; expected at most the 2 CPUs"
    ):
        require_own_cpus(ClusterSettings(num_cpus=2), 64, "train.num_workers")
    require_own_cpus(ClusterSettings(address="auto"), 64, "train.num_workers")


def test_training_on_more_workers_than_cpus_opens_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    stage: Any = SimpleNamespace(resolve=lambda _: None, finished=lambda *_: None)
    train = TrainSettings(num_workers=64, threads_per_worker=2)
    cluster = ClusterSettings(num_cpus=2)
    job = PretrainJob(corpus="corpus", output=str(tmp_path / "run"), train=train, cluster=cluster)
    with pytest.raises(ResourceError, match=r"^train.num_workers x train.threads_per_worker: found a need of 128 CPUs"):
        run_alone("pretrain", stage, job)
    assert not (tmp_path / "run").exists()


def test_a_split_that_the_corpus_has_not_is_found_before_ray_starts(tmp_path: Path) -> None:
    run = write_tiny_checkpoint(tmp_path / "run")
    corpus = write_tiny_corpus(tmp_path / "corpus", num_documents=30, held_out=0)
    given = {"checkpoint": str(run), "corpus": str(corpus), "output": str(tmp_path / "out")}
    with pytest.raises(CorpusError, match=r"corpus: found no split 'validation'; expected one of: train; "):
        evaluating.resolve(EvaluateSettings.model_validate(given))
