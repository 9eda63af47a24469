"""Evaluations and generated datasets in an object store have the bytes of those on a disk, and no local twin."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import evaluating, generating
from cluster.session import Cluster
from cluster.shard_actor import ShardActor
from cluster.shard_job import ShardJob
from cluster.tracking import TrackingOptions, open_run
from gpt_core.errors import StaleOutputError
from gpt_core.exchange.huggingface import export_model
from gpt_core.ledger import Ledger
from gpt_core.settings import EvaluateSettings, GenerateSettings, SamplingSettings, TaskSettings
from gpt_core.storage import Storage, local_folder
from gpt_core.training import checkpoint
from tests.s3_server import s3_bucket, upload
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("outputs") as url:
        yield url


@pytest.fixture(scope="module")
def models(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The same run on a disk and in the store."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "run")
    return str(folder), upload(folder, f"{bucket}/model")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shard jobs run in this process, and nothing but records may appear in the current folder."""

    def run_here(job: ShardJob, cluster: Cluster) -> Ledger:
        ledger = Ledger(job.folder)
        ledger.open(job.settings)
        actor = ShardActor(job.plans, job.make_worker, job.folder, job.pool.max_tries)
        ledger.record(map(json.loads, actor({"plan": np.arange(len(job.plans))})["row"]))
        return ledger

    monkeypatch.setattr(evaluating, "run_shard_job", run_here)
    monkeypatch.chdir(tmp_path)
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", "local", "in", "hf"}


def files_at(place: str) -> dict[str, bytes]:
    storage = Storage.of(place)
    found = {}
    for name, _ in storage.list_files(place):
        if not name.startswith("tracking/"):
            with storage.open_read(storage.join(name)) as file:
                found[name] = file.read()
    return found


def evaluate(settings: EvaluateSettings) -> evaluating.Evaluated:
    options = TrackingOptions(enabled=False, system_seconds=None)
    inputs: Any = evaluating.resolve(settings)
    assert evaluating.finished(settings, inputs) is None
    with open_run(options, name="test", kind="evaluate", output=local_folder(settings.output)) as run:
        made = evaluating.perform(settings, inputs, Cluster(None, 1, 0), run)
    assert evaluating.finished(settings, inputs) == made
    return made


def test_an_evaluation_of_a_checkpoint_in_a_store_is_written_there(
    models: tuple[str, str], bucket: str, tmp_path: Path
) -> None:
    rows = [{"ctx": "herd graze over", "endings": ["the", "hill", "and", "dawn"], "label": i % 4} for i in range(9)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "choices.jsonl").write_text("\n".join([*map(json.dumps, rows), '{"ctx": 1}']))
    given: dict[str, Any] = {
        "tasks": (TaskSettings(kind="hellaswag", path=str(tmp_path / "in")),),
        "windows_per_shard": 5,
    }
    places = [str(tmp_path / "local"), f"{bucket}/scores"]
    found = [
        evaluate(EvaluateSettings(checkpoint=model, output=place, **given))
        for model, place in zip(models, places, strict=True)
    ]
    assert found[0] == found[1]
    local, remote = map(files_at, places)
    assert remote == local
    assert set(local) == {"evaluation.json", "rejects.jsonl", "items/in/00000000.jsonl", "items/in/00000001.jsonl"}
    other = EvaluateSettings(checkpoint=models[1], output=places[1], context_tokens=64, **given)
    with pytest.raises(StaleOutputError, match="context_tokens: found a result for 128; expected 64"):
        evaluating.finished(other, evaluating.resolve(other))


def test_a_generated_dataset_has_its_manifest_and_rejects_beside_its_rows(
    models: tuple[str, str], bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "prompts.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    row = {"path": "rows/00000000.jsonl", "num_rows": 1, "num_tokens": 3, "num_bytes": 9, "xxh3_128": "ab"}
    places = [str(tmp_path / "local"), f"{bucket}/rows"]
    for model, place in zip(models, places, strict=True):
        settings = GenerateSettings(
            checkpoint=model, prompts=(str(tmp_path / "in"),), output=place, sampling=SamplingSettings(max_tokens=3)
        )
        inputs = generating.resolve(settings)
        assert generating.finished(settings, inputs) is None
        made = generating._commit(settings, inputs, "fp32", [{**row, "refused": [], "samples": []}])
        assert generating.finished(settings, inputs) == made
    local, remote = map(files_at, places)
    assert remote == local
    assert set(local) == {"manifest.json", "rejects.jsonl"}


def test_a_checkpoint_in_a_store_is_exported(models: tuple[str, str], tmp_path: Path) -> None:
    exported = export_model(checkpoint.load(models[1]), tmp_path / "hf")
    assert {"config.json", "model.safetensors", "vocab.json"} <= {path.name for path in exported.iterdir()}
