"""`herd evaluate`: a checkpoint and a corpus to loss, perplexity and bits per byte."""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.record_book import Run
from cluster.session import Cluster
from cluster.shard_job import ShardJob, run_shard_job
from gpt_core import checkpoint, manifest, sealed_json
from gpt_core.corpus import Corpus
from gpt_core.errors import CheckpointError, CorpusError, StaleOutputError
from gpt_core.evaluation import Measured, WindowScorer, plan_windows, summed
from gpt_core.ledger import first_difference
from gpt_core.settings import EvaluateSettings

RESULT = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an evaluation is about, resolved: the checkpoint's folder, and the settings that decide the result."""

    checkpoint: Path
    window_tokens: int
    decisive: dict[str, Any]


def resolve(settings: EvaluateSettings) -> Inputs:
    """Find the checkpoint and the corpus and check that they fit.

    Raises:
        CheckpointError: If there is no whole checkpoint, or its context is too short.
        CorpusError: If the corpus is not finished, or of another vocabulary.
    """
    loaded = checkpoint.load(settings.checkpoint)
    corpus = manifest.read(settings.corpus)
    if loaded.tokenizer.get("digest") != corpus.tokenizer.digest:
        raise CorpusError(
            settings.corpus,
            f"a corpus of the vocabulary {corpus.tokenizer.name}",
            f"the checkpoint's vocabulary {loaded.tokenizer.get('name')}",
            "tokenize the text with the checkpoint's vocabulary",
        )
    positions = loaded.shape.num_positions
    window_tokens = settings.context_tokens or positions
    if window_tokens > positions:
        raise CheckpointError(
            "context_tokens",
            str(window_tokens),
            f"at most the model's {positions} positions",
            "shorten the context",
        )
    decisive = {
        "checkpoint": checkpoint.weights_digest(loaded.path),
        "corpus": corpus.root_digest,
        "split": settings.split,
        "context_tokens": window_tokens,
        "max_windows": settings.max_windows,
        "windows_per_shard": settings.windows_per_shard,
        "batch_sequences": settings.batch_sequences,
    }
    return Inputs(loaded.path, window_tokens, decisive)


def finished(settings: EvaluateSettings, inputs: Inputs) -> Measured | None:
    """Return the result in the output folder if these settings made it, None if there is none.

    Raises:
        StaleOutputError: If the folder holds another evaluation, naming the first setting that differs.
    """
    found = sealed_json.read(Path(settings.output) / RESULT)
    if found is None:
        return None
    if difference := first_difference(found["settings"], inputs.decisive):
        name, old, new = difference
        raise StaleOutputError(
            f"{settings.output}: {name}",
            f"a result for {old!r}",
            f"{new!r}",
            "choose another output folder, or delete it",
        )
    return Measured(**found["measured"])


def perform(settings: EvaluateSettings, inputs: Inputs, cluster: Cluster, run: Run) -> Measured:
    """Measure, write evaluation.json atomically, record it in the run, and return it."""
    corpus = Corpus(settings.corpus, settings.split)
    num_windows = corpus.num_windows(inputs.window_tokens)
    if num_windows == 0:
        raise CorpusError(
            f"{settings.corpus}, split {settings.split}",
            f"{corpus.num_tokens} tokens",
            f"at least {inputs.window_tokens + 1}, one window",
            "hold out more documents, or shorten context_tokens",
        )
    num_windows = min(num_windows, settings.max_windows or num_windows)
    job = ShardJob(
        title="evaluate",
        folder=settings.output,
        settings=inputs.decisive,
        plans=plan_windows(num_windows, settings.windows_per_shard),
        make_worker=functools.partial(
            WindowScorer,
            str(inputs.checkpoint),
            settings.corpus,
            settings.split,
            inputs.window_tokens,
            settings.batch_sequences,
        ),
        pool=settings.pool,
    )
    ledger = run_shard_job(job, cluster)
    measured = summed(ledger.rows())
    sealed_json.write(
        Path(settings.output) / RESULT,
        {
            "settings": inputs.decisive,
            "measured": asdict(measured),
            "perplexity": measured.perplexity,
            "bits_per_byte": measured.bits_per_byte,
        },
    )
    ledger.remove()
    _record(run, settings, inputs, corpus, measured)
    return measured


def _record(run: Run, settings: EvaluateSettings, inputs: Inputs, corpus: Corpus, measured: Measured) -> None:
    metrics = {
        "loss": measured.loss,
        "perplexity": measured.perplexity,
        "bits_per_byte": measured.bits_per_byte,
    }
    run.log_metrics(metrics, step=0)
    run.log_model_input(inputs.decisive["checkpoint"])
    run.log_dataset(
        f"corpus/{settings.split}", corpus.manifest.root_digest, settings.corpus, context="evaluation",
        profile={"num_tokens": corpus.num_tokens},
    )  # fmt: skip
    run.log_artifact(Path(settings.output) / RESULT)
