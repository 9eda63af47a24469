"""`herd finetune`: a checkpoint and supervised examples to the checkpoint that is best at held-out ones.

The examples become a small corpus of packs in OUTPUT/examples, written as `herd tokenize` writes one; training is
that of `herd pretrain`, over that corpus and from the checkpoint's weights.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster import training
from cluster.recording.record_book import Run
from cluster.registering import is_registered, register
from cluster.session import Cluster
from cluster.shard_job import ShardJob, run_shard_job
from gpt_core.corpus import manifest
from gpt_core.corpus.manifest import FileEntry, Manifest, ManifestContents, ShardEntry, TokenizerEntry
from gpt_core.corpus.shards import ShardStats
from gpt_core.documents.shard_plan import ShardPlans, plan_shards
from gpt_core.errors import CheckpointError, CorpusError, StaleOutputError
from gpt_core.finetuning.examples import Fields, digest_of, list_example_files
from gpt_core.finetuning.supervised_corpus import PACKED
from gpt_core.finetuning.templates import Template, find_template
from gpt_core.finetuning.tokenize_examples import ExampleOptions, ExampleTokenizer
from gpt_core.ledger import Ledger, Row
from gpt_core.settings import FinetuneSettings
from gpt_core.storage import Location, Storage
from gpt_core.tokens.tokenizer import GrownVocabulary, load_tokenizer
from gpt_core.tokens.train_tokenizer import write_ranks
from gpt_core.tokens.vocabulary import VOCABULARY
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Checkpoint
from gpt_core.training.early_stopping import VALIDATION_LOSS
from gpt_core.training.training_plan import TrainingPlan

EXAMPLES = "examples"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a fine-tuning run is about, resolved."""

    plan: TrainingPlan
    plans: ShardPlans
    template: Template
    vocabulary: GrownVocabulary
    decisive: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What a finished run made; losses in nats a token of the targets, None where nothing was held out."""

    checkpoint: Location
    """The best by held-out loss; the last where nothing was held out."""
    weights_digest: str
    num_parameters: int
    step: int
    """The best checkpoint's."""
    num_steps: int
    """Steps trained."""
    training_loss: float
    validation_loss: float | None
    num_examples: int
    num_rejected: int


def resolve(settings: FinetuneSettings) -> Inputs:
    """Find checkpoint and examples and turn the settings into plans, with every check that costs no cluster time.

    Raises:
        CheckpointError: If there is no whole checkpoint, or the output folder holds a run with other settings.
        CorpusError: If a path has no examples to read.
        SettingsError: If the settings do not fit together.
        StaleOutputError: If the output folder holds other examples.
    """
    template = find_template(settings.task, settings.separator)
    base = checkpoint.load(settings.checkpoint)
    vocabulary = _vocabulary(base, template)
    plans = plan_shards(list_example_files(settings.examples), settings.shard_bytes)
    dropout = base.shape.dropout if settings.dropout is None else settings.dropout
    shape = replace(base.shape, vocabulary_size=vocabulary.size, dropout=dropout)
    plan = replace(
        training.plan_of(settings, f"{settings.output}/{EXAMPLES}", shape),
        starting_checkpoint=str(base.path),
        starting_digest=checkpoint.weights_digest(base.path),
        patience_evaluations=settings.train.patience_evaluations,
    )
    decisive = settings.model_dump(
        mode="json", include={"source_field", "target_field", "validation_fraction", "split_seed", "shard_bytes"}
    )
    contents = {"template": asdict(template), "tokenizer": vocabulary.digest, "contents": digest_of(plans.files)}
    inputs = Inputs(plan, plans, template, vocabulary, {**decisive, **contents, PACKED: plan.window_tokens})
    training.check_records(plan)
    if prepared := _found_examples(inputs):
        training.check_begun("finetune", plan, prepared.root_digest)
    return inputs


def finished(settings: FinetuneSettings, inputs: Inputs) -> Finetuned | None:
    """Return the run in the output folder if it is over, None if not."""
    newest, _ = training.newest_whole(settings.output)
    if newest is None or not inputs.plan.is_over(newest.step, newest.metrics):
        return None
    done = summary_of(inputs)
    if settings.register and not is_registered(settings.register, done.checkpoint.name, inputs.plan.folder):
        return None
    return done


def perform(settings: FinetuneSettings, inputs: Inputs, cluster: Cluster, run: Run) -> Finetuned:
    """Pack the examples, train until the plan is over, through failures, and return what was made."""
    examples = _found_examples(inputs) or _packed(settings, inputs, cluster)
    _check_examples(settings, inputs, examples)
    run.log_model_input(str(inputs.plan.starting_digest))
    training.fit("finetune", settings.train, training.Inputs(inputs.plan, examples), cluster, run)
    done = summary_of(inputs)
    record(run, settings, inputs, done)
    return done


def record(run: Run, settings: FinetuneSettings, inputs: Inputs, done: Finetuned) -> None:
    """Record the run's checkpoints and how it went, and register the best one where that is asked for."""
    training.record_checkpoints("finetune", run, inputs.plan, done.weights_digest)
    if settings.register:
        register("finetune", run, settings.register, done.checkpoint, inputs.plan.folder)


def _vocabulary(base: Checkpoint, template: Template) -> GrownVocabulary:
    """Return the checkpoint's vocabulary with the template's special tokens.

    Raises:
        CheckpointError: If the checkpoint's tokenizer is not known, or is not that of its embedding.
    """
    if not base.tokenizer.get("name"):
        raise CheckpointError(str(base.path), "no tokenizer", "the name of one", "import it with its tokenizer")
    tokenizer = load_tokenizer(base.tokenizer["name"])
    if tokenizer.name == "music":
        raise CheckpointError(str(base.path), "a model of music", "one of text", "choose another checkpoint")
    if tokenizer.vocabulary_size != base.shape.vocabulary_size:
        raise CheckpointError(
            str(base.path),
            f"an embedding of {base.shape.vocabulary_size} rows",
            f"{tokenizer.vocabulary_size}, those of its tokenizer",
            "import it with its own tokenizer",
        )
    return GrownVocabulary.of(tokenizer, template.specials)


def _found_examples(inputs: Inputs) -> Manifest | None:
    match manifest.compare(inputs.plan.corpus, inputs.decisive, inputs.plans.fingerprint):
        case manifest.Same(found):
            Ledger(inputs.plan.corpus).remove()  # a kill right after the commit leaves it
            return found
        case manifest.Differs(name, old, new):
            where = f"{inputs.plan.corpus}: {name}"
            raise StaleOutputError(where, f"examples packed with {old!r}", f"{new!r}", "choose another output folder")
        case manifest.Absent():
            return None


def _packed(settings: FinetuneSettings, inputs: Inputs, cluster: Cluster) -> Manifest:
    """Write the corpus of packs and return its manifest."""
    job = ShardJob(
        title="examples",
        folder=inputs.plan.corpus,
        settings={**inputs.decisive, "input": inputs.plans.fingerprint},
        plans=inputs.plans,
        make_worker=functools.partial(ExampleTokenizer, options_for(settings, inputs)),
        pool=settings.pool,
    )
    ledger = run_shard_job(job, cluster)
    written = manifest.write(inputs.plan.corpus, contents_of(inputs, list(ledger.rows())))
    ledger.remove()
    return written


def options_for(settings: FinetuneSettings, inputs: Inputs) -> ExampleOptions:
    """Return what a worker is told; a vocabulary that is no published one is first written into the corpus."""
    folder, grown = inputs.plan.corpus, inputs.vocabulary
    if is_own := grown.name == VOCABULARY:
        write_ranks(Storage.of(folder).join(VOCABULARY), grown.ranks, grown.specials)
    return ExampleOptions(
        output=folder,
        tokenizer=Storage.of(folder).join(VOCABULARY) if is_own else grown.name,
        template=inputs.template,
        fields=Fields(settings.source_field, settings.target_field, allow_empty_source=settings.task == "plain"),
        pack_tokens=inputs.plan.window_tokens,
        validation_fraction=settings.validation_fraction,
        split_seed=settings.split_seed,
    )


def contents_of(inputs: Inputs, rows: Sequence[Row]) -> ManifestContents:
    """Return what the manifest says of the packs whose workers returned these rows."""
    grown, files = inputs.vocabulary, inputs.plans.files
    return ManifestContents(
        settings=inputs.decisive,
        input_fingerprint=inputs.plans.fingerprint,
        weights={EXAMPLES: 1.0},
        tokenizer=TokenizerEntry(grown.name, grown.digest, grown.size, grown.tokenizer.end_of_text),
        shards=_entries(rows),
        files=(FileEntry(file.source, file.root, file.name, file.num_bytes) for file in files),
        num_documents_in=sum(row["num_documents_in"] for row in rows),
    )


def _entries(rows: Iterable[Row]) -> Iterator[ShardEntry]:
    for row in rows:
        for file in row["files"]:
            yield ShardEntry(file["split"], row["source"], row["index"], file["path"], ShardStats(**file["stats"]))


def _check_examples(settings: FinetuneSettings, inputs: Inputs, examples: Manifest) -> None:
    """Raise CorpusError where too many were set aside, too few are left, or none is held out."""
    counted, rejected = examples.num_documents_in, examples.num_rejected
    aside = f"{examples.folder}/rejects says why"
    if "train" not in examples.splits:
        found = f"no example to train on ({rejected:,} of {counted:,} set aside)"
        raise CorpusError(examples.folder, found, "at least one", aside)
    if rejected > settings.max_reject_share * counted:
        found = f"{rejected:,} of {counted:,} examples set aside"
        expected = f"at most a share of {settings.max_reject_share}"
        raise CorpusError(f"{settings.output}: max_reject_share", found, expected, f"mend them: {aside}")
    num_packs = examples.splits["train"].num_tokens // inputs.plan.window_tokens
    if num_packs < settings.train.batch_sequences:
        found = f"{num_packs} packs of {inputs.plan.window_tokens} tokens"
        expected = f"at least a batch, {settings.train.batch_sequences}"
        remedy = "lower train.batch_sequences or train.context_tokens, or add examples, and choose another output"
        raise CorpusError(examples.folder, found, expected, remedy)
    if settings.train.patience_evaluations is not None and "validation" not in examples.splits:
        found = f"no held-out example among {counted:,}"
        remedy = "raise validation_fraction, or set train.patience_evaluations to null"
        raise CorpusError(examples.folder, found, "at least one for early stopping", remedy)


def summary_of(inputs: Inputs) -> Finetuned:
    """Return what lies in the output folder of a run that is over."""
    described = {path: checkpoint.read_description(path) for path in checkpoint.list_paths(inputs.plan.output)}
    last = list(described)[-1]
    measured = [path for path, found in described.items() if VALIDATION_LOSS in found.metrics]
    best = min(measured, key=lambda path: described[path].metrics[VALIDATION_LOSS], default=last)
    examples = manifest.read(inputs.plan.corpus)
    return Finetuned(
        checkpoint=best,
        weights_digest=checkpoint.weights_digest(best),
        num_parameters=inputs.plan.shape.num_parameters,
        step=described[best].step,
        num_steps=described[last].step,
        training_loss=described[best].metrics["loss"],
        validation_loss=described[best].metrics.get(VALIDATION_LOSS),
        num_examples=examples.num_documents_in - examples.num_rejected,
        num_rejected=examples.num_rejected,
    )
