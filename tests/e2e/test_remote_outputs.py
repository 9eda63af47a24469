"""Checkpoints and generated rows in an object store, by command: the bytes of those on a disk."""

import json
from pathlib import Path

import pytest

from gpt_core.storage import Storage
from gpt_core.training import checkpoint
from tests.e2e.commands import herd
from tests.s3_server import s3_bucket
from tests.tiny_corpus import write_tiny_corpus

SETTINGS = """
model: {n_layer: 1, n_head: 1, n_embd: 16, num_positions: 32}
recipe: {decay_tokens: 1024}
train: {batch_sequences: 8, micro_batch_sequences: 2, evaluate_sequences: 4, precision: fp32, checkpoint_every_steps: 2}
"""


def run(folder: Path, *words: str) -> str:
    done = herd(*words, folder=folder)
    assert done.code == 0, done.err
    return done.err


def files_at(place: str) -> dict[str, bytes]:
    storage = Storage.of(place)
    found = {}
    for name, _ in storage.list_files(place):
        with storage.open_read(storage.join(name)) as file:
            found[name] = file.read()
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_commands_write_to_a_store_is_what_they_write_to_a_disk(tmp_path: Path) -> None:
    corpus, prompts = write_tiny_corpus(tmp_path / "corpus"), tmp_path / "prompts.txt"
    prompts.write_text("To be\nOr not\n")
    machines = [tmp_path / name for name in ("one", "other")]
    for folder in (tmp_path, *machines):
        folder.mkdir(exist_ok=True)
        (folder / "pretrain.yaml").write_text(SETTINGS)
    with s3_bucket("outputs") as bucket:
        pretrain = ("pretrain", "--config", "pretrain.yaml", "--corpus", str(corpus), "--train.num_steps")
        run(machines[0], *pretrain, "2", "--output", f"{bucket}/run")
        run(machines[1], *pretrain, "4", "--output", f"{bucket}/run")  # a machine that has nothing but the URL
        run(tmp_path, *pretrain, "4", "--output", "run")
        at_url, local = f"{bucket}/run", str(tmp_path / "run")
        assert checkpoint.weights_digest(checkpoint.list_paths(at_url)[-1]) == checkpoint.weights_digest(
            checkpoint.list_paths(local)[-1]
        )
        steps = [json.loads(line)["step"] for line in files_at(at_url)["metrics.jsonl"].splitlines()]
        assert steps == [1, 2, 3, 4]

        generate = ("generate", "--engine.precision", "fp32", "--sampling.max_tokens", "5", "--prompts", str(prompts))
        run(machines[1], *generate, "--checkpoint", at_url, "--output", f"{bucket}/rows")
        run(tmp_path, *generate, "--checkpoint", local, "--output", "rows")
        remote = files_at(f"{bucket}/rows")
        assert set(remote) == {"manifest.json", "rows/00000000.jsonl", "tracking/run-key"}
        del remote["tracking/run-key"]
        assert remote == {name: (tmp_path / "rows" / name).read_bytes() for name in remote}
        again = run(machines[0], *generate, "--checkpoint", at_url, "--output", f"{bucket}/rows")
        assert "skipped" in again
    for machine in machines:
        assert sorted(path.name for path in machine.iterdir()) == ["pretrain.yaml", "runs"]
