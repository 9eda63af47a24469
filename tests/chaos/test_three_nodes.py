"""The pipeline on a cluster of three nodes, of which two die: the digests are those of one machine.

HERD_CHAOS_SCHEDULES=N tries N pairs of moments (3 by default), the first at fixed ones.
"""

import json
import os
import random
import subprocess
import sys

import pytest
import yaml

from gpt_core.corpus import manifest
from gpt_core.training import checkpoint
from tests.chaos.namespaces import needs_namespaces
from tests.chaos.three_nodes import ROOT, Moment, perform

NUM_SCHEDULES = int(os.environ.get("HERD_CHAOS_SCHEDULES", "3"))
# What each stage writes, in the stages' order.
SIGNS = ("corpus", "corpus/train/*", "model", "model/checkpoints/*", "evaluation", "generated", "generated/rows/*")

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


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"def f{number}(\n" for number in range(16)))
    config = folder / "pipeline.yaml"
    settings = SETTINGS | {"generate": {**SETTINGS["generate"], "prompts": [str(prompts)]}}
    config.write_text(yaml.safe_dump(settings))
    return ["--config", str(config)]


@pytest.fixture(scope="module")
def expected(words, tmp_path_factory):
    """The digests of one machine."""
    output = tmp_path_factory.mktemp("one")
    command = [sys.executable, "-m", "jobs.pipeline", *words, "--output", str(output)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return digests(output)


def digests(output):
    generated = json.loads((output / "generated" / "manifest.json").read_text())
    newest = checkpoint.load(output / "model")
    return {
        "corpus": manifest.read(output / "corpus").root_digest,
        "weights": checkpoint.weights_digest(newest.path),
        "evaluation": (output / "evaluation" / "evaluation.json").read_bytes(),
        "generated": generated["generated"]["root_digest"],
    }


def deaths_of(number):
    """Return the moments of two deaths, those of the first schedule while training and while generating."""
    if number == 0:
        return Moment("model/checkpoints/step-*"), Moment("generated/rows/*")
    rng = random.Random(number)
    first, second = sorted(rng.choices(range(len(SIGNS)), k=2))
    return Moment(SIGNS[first], rng.uniform(0, 5)), Moment(SIGNS[second], rng.uniform(0, 5))


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_namespaces
@pytest.mark.parametrize("number", range(NUM_SCHEDULES))
def test_three_nodes_of_which_two_die_make_what_one_machine_makes(number, words, expected, tmp_path):
    output, folder = tmp_path / "three", tmp_path / "home"
    folder.mkdir()
    said = perform([*words, "--output", str(output)], output, folder, deaths_of(number))
    assert "the job was at work" in said
    assert digests(output) == expected, said
