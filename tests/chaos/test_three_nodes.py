"""The pipeline on a cluster of three nodes, of which two die: the digests are those of one machine."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from gpt_core.corpus import manifest
from gpt_core.training import checkpoint
from tests.chaos.three_nodes import ROOT, perform

SETTINGS = {
    "tokenize": {
        "input": [str(ROOT / "gpt_core" / "*.py")],
        "tokenizer": {"name": "bytes"},
        "shard_bytes": 20_000,
        "validation_fraction": 0.1,
    },
    "pretrain": {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "num_positions": 64},
        "train": {
            "num_steps": 60,
            "batch_sequences": 8,
            "micro_batch_sequences": 4,
            "num_workers": [1, 2],
            "checkpoint_every_steps": 10,
            "evaluate_every_steps": 30,
            "evaluate_sequences": 8,
        },
    },
    "evaluate": {"max_windows": 64, "windows_per_shard": 16},
    "generate": {"prompts_per_shard": 2, "sampling": {"max_tokens": 24}},
    "tracking": {"enabled": False},
}


@pytest.fixture
def words(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"def f{number}(\n" for number in range(16)))
    config = tmp_path / "pipeline.yaml"
    settings = SETTINGS | {"generate": {**SETTINGS["generate"], "prompts": [str(prompts)]}}
    config.write_text(yaml.safe_dump(settings))
    return ["--config", str(config)]


def digests(output):
    generated = json.loads((output / "generated" / "manifest.json").read_text())
    newest = checkpoint.load(output / "model")
    return {
        "corpus": manifest.read(output / "corpus").root_digest,
        "weights": checkpoint.weights_digest(newest.path),
        "evaluation": (output / "evaluation" / "evaluation.json").read_bytes(),
        "generated": generated["generated"]["root_digest"],
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs namespaces of its own: run as root")
def test_three_nodes_of_which_two_die_make_what_one_machine_makes(words, tmp_path):
    one, three, folder = tmp_path / "one", tmp_path / "three", tmp_path / "home"
    folder.mkdir()
    calm = [sys.executable, "-m", "jobs.pipeline", *words, "--output", str(one)]
    with subprocess.Popen(calm, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as on_one_machine:
        said = perform([*words, "--output", str(three)], three, folder)
    assert on_one_machine.returncode == 0
    assert "the job was at work" in said
    assert digests(three) == digests(one), said
