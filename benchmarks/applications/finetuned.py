"""What the applications share: a checkpoint to begin with, fine-tuning and completing, all in this process.

Without Ray, so that a table of small runs takes minutes; the packs, the training loop and the engine are those of
`herd finetune` and `herd generate`.
"""

import argparse
import hashlib
import itertools
import json
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cluster import finetuning
from gpt_core.corpus import manifest
from gpt_core.corpus.manifest import ManifestContents, ShardEntry, TokenizerEntry
from gpt_core.corpus.shards import ShardStats
from gpt_core.corpus.tokenize_shard import ShardTokenizer, TokenizeOptions
from gpt_core.documents.shard_plan import plan_shards
from gpt_core.documents.source_files import SourceSpec, list_files
from gpt_core.finetuning.tokenize_examples import ExampleTokenizer
from gpt_core.generation.engine import Engine, EngineOptions
from gpt_core.generation.request import GenerationRequest, Sampling
from gpt_core.model.presets import ModelShape
from gpt_core.settings import FinetuneSettings
from gpt_core.storage import Location
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.tokens.train_tokenizer import train_ranks, write_ranks
from gpt_core.tokens.vocabulary import VOCABULARY
from gpt_core.training import checkpoint
from gpt_core.training.loop import train
from gpt_core.training.schedule import Recipe
from gpt_core.training.training_plan import TrainingPlan

Pair = tuple[str, str]
EXCLUDED = (
    "**/test/**",
    "**/tests/**",
    "**/idle_test/**",
    "**/site-packages/**",
    "**/dist-packages/**",
    "**/lib2to3/**",
)
SHAPE = ModelShape(n_layer=4, n_head=4, n_embd=128, num_positions=256, vocabulary_size=4096)
"""The blocks of jobs/configs/quickstart.yaml over a small vocabulary: most of its time goes into 50,257 logits."""
_VOCABULARY_BYTES = 2_000_000


@dataclass(frozen=True)
class Bench:
    """Where a benchmark works and how much it may do."""

    folder: Path
    checkpoint: str | None
    pretrain_steps: int
    steps: int
    threads: int
    learning_rate: float
    shape: ModelShape

    def pretrained(self, texts: Sequence[str] = ()) -> str:
        """Return the given checkpoint, or one trained here on the standard library.

        Its vocabulary is learnt from the library and from the texts, which the checkpoint is to be taught later.
        """
        if self.checkpoint:
            return self.checkpoint
        output = self.folder / "pretrained"
        plan = self._plan(str(_stdlib_corpus(self.folder / "corpus", texts)), output, self.pretrain_steps)
        started = time.monotonic()
        train(plan)
        print(f"pretrained {self.pretrain_steps} steps in {time.monotonic() - started:.0f} s", flush=True)
        return str(output)

    def untrained(self, seed: int = 0) -> str:
        """Return a checkpoint of the same shape with the seed's weights: to fine-tune it is to train from scratch."""
        from gpt_core.training.learner import Learner

        base = checkpoint.load(self.checkpoint or self.folder / "pretrained")
        learner = Learner(base.shape, Recipe(), seed).initialise()
        description = checkpoint.Description(step=0, tokens=0, shape=base.shape, tokenizer=base.tokenizer)
        output = self.folder / f"untrained-{seed}"
        checkpoint.write(output, description, learner.weights(), {})
        return str(output)

    def finetune(self, name: str, start: str, pairs: Sequence[Pair], **settings: object) -> finetuning.Finetuned:
        """Fine-tune a checkpoint on (source, target) pairs and return what came of it."""
        examples = self.folder / f"{name}.jsonl"
        examples.write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in pairs), "utf-8")
        train_settings = {
            "num_steps": self.steps,
            "threads_per_worker": self.threads,
            "evaluate_every_steps": 25,
            "evaluate_sequences": 32,
        }
        values = {
            "checkpoint": start,
            "examples": [str(examples)],
            "output": str(self.folder / name),
            "recipe": {"learning_rate": self.learning_rate, "beta2": 0.99, "warmup_tokens": 20_000},
            "dropout": 0.1,
            **settings,
            "train": train_settings | settings.pop("train", {}),  # pyright: ignore[reportOperatorIssue]
        }
        job = FinetuneSettings.model_validate(values)
        inputs = finetuning.resolve(job)
        worker = ExampleTokenizer(finetuning.options_for(job, inputs))
        rows = [{"index": plan.index, **worker(plan)} for plan in inputs.plans]
        manifest.write(inputs.plan.corpus, finetuning.contents_of(inputs, rows))
        train(inputs.plan)
        return finetuning.summary_of(inputs)

    def complete(
        self, path: str | Location, prompts: Sequence[str], max_tokens: int, stop: tuple[str, ...] = ()
    ) -> list[str]:
        """Return a checkpoint's greedy completions; ValueError where a prompt does not fit into its context."""
        torch.set_num_threads(self.threads)
        loaded = checkpoint.load(path)
        tokenizer = load_tokenizer(loaded.tokenizer["name"])
        engine = Engine(loaded.weights, loaded.shape, tokenizer, EngineOptions(slots=32))
        sampling = Sampling(max_tokens=max_tokens, temperature=0.0, stop=stop)
        requests = [
            GenerationRequest(str(number), tuple(tokenizer.encode_prompt(prompt).tolist()), sampling)
            for number, prompt in enumerate(prompts)
        ]
        done = sorted(engine.run(requests), key=lambda completion: int(completion.request_id))
        if refused := next((completion.error for completion in done if completion.error), None):
            raise ValueError(refused)
        return [completion.text.strip() for completion in done]

    def fits(self, path: str | Location, prompts: Sequence[str], max_tokens: int) -> list[bool]:
        """Return which prompts leave room for a completion in the checkpoint's context."""
        loaded = checkpoint.load(path)
        tokenizer = load_tokenizer(loaded.tokenizer["name"])
        room_tokens = loaded.shape.num_positions - max_tokens
        return [len(tokenizer.encode_prompt(prompt)) <= room_tokens for prompt in prompts]

    def _plan(self, corpus: str, output: Path, num_steps: int) -> TrainingPlan:
        return TrainingPlan(
            corpus=corpus,
            output=str(output),
            shape=self.shape,
            num_steps=num_steps,
            window_tokens=self.shape.num_positions,
            batch_sequences=4,
            micro_batch_sequences=2,
            recipe=Recipe(learning_rate=3e-3, warmup_tokens=10_240, beta2=0.99),
            num_threads=self.threads,
            checkpoint_every_steps=50,
            evaluate_sequences=32,
        )


def arguments(description: str | None, default_steps: int, default_rate: float) -> argparse.ArgumentParser:
    """Return a parser of what every application can be told; a benchmark adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="begin with this one, such as runs/quickstart/model")
    parser.add_argument("--pretrain-steps", type=int, default=1000, help="steps of a checkpoint made here otherwise")
    parser.add_argument("--width", type=int, default=SHAPE.n_embd, help="of a checkpoint made here")
    parser.add_argument("--steps", type=int, default=default_steps, help="steps of fine-tuning at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=default_rate)
    parser.add_argument("--folder", type=Path, help="where to work; by default a new temporary folder")
    return parser


def bench_of(given: argparse.Namespace) -> Bench:
    """Return the benchmark that the command line asks for."""
    folder = given.folder or Path(tempfile.mkdtemp(prefix="herd-application-"))
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(
        folder.absolute(), given.checkpoint, given.pretrain_steps, given.steps, given.threads, given.learning_rate,
        replace(SHAPE, n_embd=given.width),
    )  # fmt: skip


def split_by_hash(pairs: Sequence[Pair], held_out_share: float) -> tuple[list[Pair], list[Pair]]:
    """Return (training, held-out) pairs, each source once, in the order of a hash of the source that also decides."""
    unique = {hashlib.sha256(source.encode()).digest(): (source, target) for source, target in reversed(pairs)}
    limit = int(held_out_share * 2**32)
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for digest in sorted(unique):
        # Bytes that the order does not depend on: the first training pairs are then no special ones.
        parts[int.from_bytes(digest[-4:]) < limit].append(unique[digest])
    return parts


def stdlib_files() -> list[Path]:
    """Return the modules of the standard library, without tests, sorted."""
    root = sysconfig.get_path("stdlib")
    found = list_files(SourceSpec("stdlib", (f"{root}/**/*.py",), EXCLUDED))
    return [Path(file.path) for file in found]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _stdlib_corpus(folder: Path, texts: Sequence[str]) -> Path:
    files = list_files(SourceSpec("stdlib", (f"{sysconfig.get_path('stdlib')}/**/*.py",), EXCLUDED))
    vocabulary = folder / VOCABULARY
    if not vocabulary.exists():
        write_ranks(vocabulary, train_ranks(itertools.chain(_some_texts(), texts), SHAPE.vocabulary_size))
    plans = plan_shards(files, 1 << 40)
    row = ShardTokenizer(TokenizeOptions(str(folder), tokenizer=str(vocabulary), validation_fraction=0.02))(plans[0])
    shards = [
        ShardEntry(file["split"], "stdlib", 0, file["path"], ShardStats(**file["stats"])) for file in row["files"]
    ]
    own = load_tokenizer(str(vocabulary))
    entry = TokenizerEntry(VOCABULARY, own.digest, own.vocabulary_size, own.end_of_text)
    contents = ManifestContents({}, plans.fingerprint, {"stdlib": 1.0}, entry, shards, [], row["num_documents_in"])
    manifest.write(str(folder), contents)
    return folder


def _some_texts() -> Iterator[str]:
    """Yield every eighth module, up to a size that teaches a small vocabulary in seconds."""
    num_bytes = 0
    for file in stdlib_files()[::8]:
        data = file.read_bytes()
        num_bytes += len(data)
        if num_bytes > _VOCABULARY_BYTES:
            return
        yield data.decode("utf-8", errors="replace")
