"""`herd finetune` as typed: interrupted and taken up by other workers, to the weights that one process computes."""

from pathlib import Path

import pytest
import torch

from gpt_core.settings import FinetuneSettings
from tests.e2e.commands import herd, herd_interrupted
from tests.finetune_here import finetune_here, write_examples
from tests.tiny_checkpoint import write_tiny_checkpoint

TRAIN = {"num_steps": 120, "batch_sequences": 8, "evaluate_every_steps": 30, "precision": "fp32"}
WORDS = [f"--train.{name}={value}" for name, value in TRAIN.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    write_tiny_checkpoint(folder / "base", num_positions=64)
    write_examples(folder / "pairs.jsonl")
    (folder / "prompts.txt").write_text("sun dog <to-fr>\n", encoding="utf-8")
    return folder


def finetune(output: str, *words: str, checkpoint: str = "base", task: str = "translate") -> list[str]:
    """Return the command's words."""
    given = [f"--checkpoint={checkpoint}", "--examples=pairs.jsonl", f"--task={task}", f"--output={output}"]
    quiet = ["--validation_fraction=0.2", "--tracking.enabled=false", "--cluster.num_cpus=2"]
    return ["finetune", *given, *quiet, *WORDS, *words]


@pytest.mark.timeout(400)
def test_interrupted_and_on_other_workers_it_makes_what_one_process_makes_and_completes_prompts(folder):
    stopped = herd_interrupted(*finetune("tuned"), folder=folder, at=" steps, loss")
    assert stopped.code == 130, stopped.err
    done = herd(*finetune("tuned", "--train.num_workers=2"), folder=folder)
    assert done.code == 0, done.err
    assert "120 examples, 3 set aside, " in done.out
    torch.set_num_threads(1)
    expected = finetune_here(
        FinetuneSettings.model_validate(
            {
                "checkpoint": str(folder / "base"),
                "examples": [str(folder / "pairs.jsonl")],
                "task": "translate",
                "validation_fraction": 0.2,
                "output": str(folder / "expected"),
                "train": TRAIN,
            }
        )
    )
    assert f"step {expected.step}, loss {expected.validation_loss:.3f} on held-out" in done.out
    assert f"weights digest {expected.weights_digest}" in done.out
    best = folder / "tuned" / "checkpoints" / expected.checkpoint.name
    words = ["--checkpoint", str(best), "--prompts", "prompts.txt", "--output", "answers", "--sampling.max_tokens=4"]
    answered = herd("generate", *words, "--tracking.enabled=false", "--cluster.num_cpus=2", folder=folder)
    assert answered.code == 0, answered.err
    assert '"prompt":"sun dog <to-fr>"' in (folder / "answers/rows/00000000.jsonl").read_text().replace('": "', '":"')


def test_mistakes_end_with_one_sentence_and_code_2(folder):
    refused = herd(*finetune("wrong", checkpoint="nowhere"), folder=folder)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.endswith("/nowhere: found no whole checkpoint; expected a folder with checkpoint.json, or a run "
                                "folder; train first\n")  # fmt: skip
    unknown = herd(*finetune("wrong", task="translte"), folder=folder)
    assert unknown.code == 2
    assert "--task: found the text 'translte'" in unknown.err
    assert "did you mean translate?" in unknown.err
