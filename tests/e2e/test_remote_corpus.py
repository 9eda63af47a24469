"""A corpus in an object store, trained by command; then the finished run is registered and taken by its name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gpt_core.training import checkpoint
from gpt_core.training.loop import train
from gpt_core.training.training_plan import TrainingPlan
from tests.e2e.commands import herd
from tests.s3_server import s3_bucket, upload
from tests.tiny_corpus import write_tiny_corpus

SETTINGS = """
model: {n_layer: 1, n_head: 1, n_embd: 16, num_positions: 32}
train:
  num_steps: 4
  batch_sequences: 8
  micro_batch_sequences: 2
  evaluate_sequences: 4
  num_workers: 2
  block_windows: 16
  cache_folder: cache
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_weights_trained_from_s3_are_those_trained_from_a_disk_and_can_be_had_by_name(tmp_path: Path) -> None:
    corpus = write_tiny_corpus(tmp_path / "corpus")
    (tmp_path / "pretrain.yaml").write_text(SETTINGS)
    with s3_bucket("text") as bucket:
        url = upload(corpus, f"{bucket}/corpus")
        pretrain = ("pretrain", "--config", "pretrain.yaml", "--corpus", url, "--output", "run")
        done = herd(*pretrain, folder=tmp_path)
        assert done.code == 0, done.err
        # Fetched by both workers, in one copy.
        assert [path.read_bytes() for path in (tmp_path / "cache").glob("*.arrow")] == [
            (corpus / "train" / "00000000.arrow").read_bytes()
        ]
        trained = checkpoint.list_paths(tmp_path / "run")[-1]
        plan = TrainingPlan.from_dict(checkpoint.read_description(trained).settings)
        local = train(replace(plan, corpus=str(corpus), output=str(tmp_path / "local")))
        assert local.checkpoint is not None
        assert checkpoint.weights_digest(local.checkpoint) == checkpoint.weights_digest(trained)

        registered = herd(*pretrain, "--register", "poet", folder=tmp_path)
    assert registered.code == 0, registered.err
    assert "registering step-00000004 as models:/poet@newest" in registered.err
    assert checkpoint.list_paths(tmp_path / "run")[-1] == trained

    words = ("evaluate", "--checkpoint", "models:/poet@newest", "--corpus", str(corpus), "--output", "measured")
    measured = herd(*words, folder=tmp_path)
    assert measured.code == 0, measured.err
    sealed = json.loads((tmp_path / "measured" / "evaluation.json").read_text())
    assert checkpoint.weights_digest(trained) in json.dumps(sealed)
