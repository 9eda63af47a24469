"""Validation loss on a small public text with the CPU recipe of jobs/configs/shakespeare_char.yaml, without Ray.

    python -m benchmarks.quality --text tinyshakespeare.txt [--seeds 0 1 2] [--muon 0.01 0.02 0.04]

Trains 4 layers of width 128 on bytes for 2000 steps of 12 x 64 tokens, one thread, and evaluates on
the whole validation split (the last 10% of the text). With --muon it trains the same model with
Muon at each peak rate and says at which step each run first reaches the target loss. A run that is
cut short begins at the end of its cosine only when it is told to be that short, so the steps Muon
saves are measured with runs of their own length (--steps).
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from gpt_core.corpus import manifest
from gpt_core.corpus.manifest import ManifestContents, ShardEntry, TokenizerEntry
from gpt_core.corpus.shards import ShardStats
from gpt_core.corpus.tokenize_shard import ShardTokenizer, TokenizeOptions
from gpt_core.documents.shard_plan import plan_shards
from gpt_core.documents.source_files import SourceSpec, list_files
from gpt_core.model.presets import ModelShape
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training.loop import train
from gpt_core.training.schedule import Recipe
from gpt_core.training.training_plan import TrainingPlan

TARGET = 1.88
BATCH, CONTEXT = 12, 64


def main() -> None:
    """Parse the command line, train every run and print its losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[2000])
    parser.add_argument("--muon", type=float, nargs="*", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(arguments.text, Path(folder) / "corpus")
        for steps in arguments.steps:
            plan = plan_of(corpus, folder, steps)
            report("adamw", plan, arguments.seeds)
            for rate in arguments.muon:
                recipe = replace(plan.recipe, optimizer="muon", muon_learning_rate=rate)
                report(f"muon {rate:g}", replace(plan, recipe=recipe), arguments.seeds)


def write_corpus(text: Path, folder: Path) -> str:
    """Tokenize a text to bytes, its last tenth held out, and return the corpus folder."""
    files = list_files(SourceSpec(name="text", paths=(str(text.resolve()),)))
    plans = plan_shards(files, 1 << 30)
    row = ShardTokenizer(TokenizeOptions(str(folder), tokenizer="bytes", validation_tail=0.1))(plans[0])
    shards = [ShardEntry(file["split"], "text", 0, file["path"], ShardStats(**file["stats"])) for file in row["files"]]
    bytes_tokenizer = load_tokenizer("bytes")
    described = TokenizerEntry(
        bytes_tokenizer.name, bytes_tokenizer.digest, bytes_tokenizer.vocabulary_size, bytes_tokenizer.end_of_text
    )
    counts = row["num_documents_in"], row["num_tails"]
    contents = ManifestContents({}, plans.fingerprint, {"text": 1.0}, described, shards, [], *counts)
    manifest.write(str(folder), contents)
    return str(folder)


def plan_of(corpus: str, folder: str, num_steps: int) -> TrainingPlan:
    """Return the recipe over a number of steps; its cosine ends with them."""
    recipe = Recipe(learning_rate=1e-3, min_learning_rate_share=0.1, warmup_tokens=100 * BATCH * CONTEXT, beta2=0.99)
    return TrainingPlan(
        corpus=corpus,
        output=folder,
        shape=ModelShape(4, 4, 128, CONTEXT, 257),
        num_steps=num_steps,
        window_tokens=CONTEXT,
        batch_sequences=BATCH,
        micro_batch_sequences=BATCH,
        recipe=recipe,
        precision="fp32",
        evaluate_sequences=1_000_000,
    )


def report(name: str, plan: TrainingPlan, seeds: list[int]) -> None:
    """Train with each seed and print the validation losses, their mean, and whether it is the target."""
    losses, seconds = [], []
    for seed in seeds:
        start = time.perf_counter()
        output = Path(plan.output) / f"{name}-{plan.num_steps}-{seed}".replace(" ", "-")
        summary = train(replace(plan, seed=seed, output=str(output)))
        losses.append(summary.metrics["validation_loss"])
        seconds.append(time.perf_counter() - start)
    reached = "reaches" if statistics.mean(losses) <= TARGET else "misses"
    each = " ".join(f"{loss:.4f}" for loss in losses)
    print(
        f"{name}, {plan.num_steps} steps: validation loss {each}, mean {statistics.mean(losses):.4f}, "
        f"{reached} {TARGET}; {statistics.mean(seconds):.0f} s a run",
        flush=True,
    )


if __name__ == "__main__":
    main()
