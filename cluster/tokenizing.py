"""`herd tokenize`: text to Arrow shards and a manifest, on the actors of a cluster."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cluster import input_guard
from cluster.progress import say
from cluster.recording.record_book import Run
from cluster.session import Cluster
from cluster.shard_job import ShardJob, run_shard_job
from cluster.stages import log_output
from gpt_core.corpus import manifest
from gpt_core.corpus.manifest import FileEntry, Manifest, ManifestContents, ShardEntry, TokenizerEntry
from gpt_core.corpus.order import block_counts
from gpt_core.corpus.reject_lines import number_lines
from gpt_core.corpus.rejects import read_rejects
from gpt_core.corpus.shards import ShardStats
from gpt_core.corpus.tokenize_shard import ShardTokenizer, TokenizeOptions
from gpt_core.counted import counted
from gpt_core.documents.file_columns import FileColumns
from gpt_core.documents.input_changes import file_digests, gather
from gpt_core.documents.shard_plan import ShardPlans, plan_shards
from gpt_core.documents.source_files import Listing, SourceSpec, find_files, place_in
from gpt_core.errors import CorpusError, StaleOutputError
from gpt_core.ledger import Ledger, Row
from gpt_core.settings import TokenizeSettings
from gpt_core.storage import Storage, is_url
from gpt_core.tokens.tokenizer import TiktokenTokenizer, Tokenizer, load_tokenizer
from gpt_core.tokens.train_tokenizer import write_ranks
from gpt_core.tokens.vocabulary import PUBLISHED, VOCABULARY


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a tokenizing job is about, resolved."""

    plans: ShardPlans
    tokenizer: Tokenizer
    decisive: dict[str, Any]
    ignored: Counter[str]
    """Files in the folders of the input that are hidden or of no known suffix, by suffix."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """What a finished corpus holds, over all splits."""

    root_digest: str
    num_shards: int
    num_documents: int
    num_tokens: int
    num_rejected: int


def resolve(settings: TokenizeSettings) -> Inputs:
    """List the input and cut it into plans.

    Raises:
        CorpusError: If a path has nothing to read, or a source's weight is too small to be met.
        SettingsError: If the tokenizer is unknown.
    """
    tokenizer = load_tokenizer(settings.tokenizer.name)
    block_counts([source.weight for source in settings.named_sources()])  # a share too small is a mistake now
    found = _listed(settings)
    plans = plan_shards(FileColumns.joined([listing.files for listing in found]), settings.shard_bytes)
    decisive = settings.model_dump(
        mode="json", include={"shard_bytes", "validation_fraction", "split_seed", "max_document_bytes"}
    )
    if settings.validation_tail:
        decisive["validation_tail"] = settings.validation_tail
    decisive["tokenizer"] = tokenizer.digest
    decisive["sources"] = {
        source.name: source.model_dump(mode="json", include={"weight", "text_field", "separator"})
        for source in settings.named_sources()
    }
    return Inputs(plans, tokenizer, decisive, sum((listing.ignored for listing in found), Counter[str]()))


def _listed(settings: TokenizeSettings) -> list[Listing]:
    """Return the files of each source but for those in the output folder: the corpus is not its own input."""
    return [
        _without_output(settings.output, find_files(_spec(source, settings.kind)))
        for source in settings.named_sources()
    ]


def _without_output(output: str, listing: Listing) -> Listing:
    files = listing.files
    inside = f"{_real(output)}/"
    roots = [f"{_real(kind.root)}/" for kind in files.kinds]
    if not any(inside.startswith(root) or root.startswith(inside) for root in roots):
        return listing
    places = zip(files.numbers.tolist(), files.names(), strict=True)
    kept = [row for row, (kind, name) in enumerate(places) if not f"{roots[kind]}{name}".startswith(inside)]
    if not kept:
        raise CorpusError(
            f"source {files.kinds[0].source!r}",
            f"no file but those in the output folder {output}",
            "input of its own",
            "choose an output folder beside the input",
        )
    return Listing(files.taken(np.array(kept, np.int64)), listing.ignored)


def _real(place: str) -> str:
    return place.rstrip("/") if is_url(place) else os.path.realpath(place).rstrip("/")


def finished(settings: TokenizeSettings, inputs: Inputs) -> Tokenized | None:
    """Return the corpus in the output folder if these settings and this input made it.

    Raises:
        StaleOutputError: If other settings or other input made it, naming the first difference or the file.
    """
    match manifest.compare(settings.output, inputs.decisive, inputs.plans.fingerprint):
        case manifest.Same(found):
            input_guard.check_finished(inputs.plans, found)
            Ledger(settings.output).remove()  # a kill right after the commit leaves it
            return summary_of(found)
        case manifest.Differs(manifest.INPUT_FILES):
            raise input_guard.other_files(inputs.plans, manifest.read(settings.output))
        case manifest.Differs(name, old, new):
            raise StaleOutputError(
                f"{settings.output}: {name}",
                f"a corpus made with {old!r}",
                f"{new!r}",
                "choose another output folder",
            )
        case manifest.Absent():
            return None


def perform(settings: TokenizeSettings, inputs: Inputs, cluster: Cluster, run: Run) -> Tokenized:
    """Tokenize every plan, commit the corpus, record it in the run and return what it holds."""
    if inputs.ignored:
        say(f"tokenize: left out {told_ignored(inputs.ignored)}; a glob takes any")
    carried = _carry_vocabulary(settings.output, inputs.tokenizer)
    vocabulary = Storage.of(settings.output).join(carried) if carried else settings.tokenizer.name
    job = ShardJob(
        title="tokenize",
        folder=settings.output,
        settings={**inputs.decisive, "input": inputs.plans.fingerprint},
        plans=inputs.plans,
        make_worker=functools.partial(ShardTokenizer, options_for(settings, inputs, vocabulary)),
        pool=settings.pool,
    )
    ledger = Ledger(settings.output)
    ledger.open(job.settings)
    input_guard.check_resumed(settings.output, inputs.plans)
    ledger = run_shard_job(job, cluster)
    facts = gather(inputs.plans, ledger.rows())
    files_now = FileColumns.joined([listing.files for listing in _listed(settings)])
    input_guard.check_unchanged(settings.output, inputs.plans, facts, files_now)
    try:
        _check_documents(settings, ledger.rows())
    except CorpusError:
        number_lines(settings.output, inputs.plans, facts, ledger.rows())  # the user is sent there
        raise
    written = manifest.write(
        settings.output, contents_of(settings, inputs, ledger.rows, carried or inputs.tokenizer.name)
    )
    ledger.remove()
    for remark in remarks_on(settings, written):
        say(f"tokenize: {remark}")
    made = summary_of(written)
    record(run, settings, inputs, made)
    return made


def remarks_on(settings: TokenizeSettings, written: Manifest) -> Iterator[str]:
    """Yield what the user may miss in the corpus: why documents were set aside, and that none was held out."""
    if written.num_rejected:
        row = written.shards.column("split").index(manifest.REJECTS).as_py()
        storage = Storage.of(written.folder)
        first = next(read_rejects(storage.join(written.shards.column("path")[row].as_py())))
        name, line = first["file"], first["line"]
        place = f"{name}, line {line}" if line else place_in(name, first["start"])
        aside = f"{counted(written.num_rejected, 'document')} in {storage.join(manifest.REJECTS)}"
        yield f"set aside {aside}; the first, {place}: {first['reason']}"
    if (settings.validation_fraction or settings.validation_tail) and "validation" not in written.splits:
        larger = "a larger --validation_fraction holds out more documents, --validation_tail their ends"
        yield f"nothing is held out, there is no split 'validation'; {larger}"


def told_ignored(ignored: Counter[str]) -> str:
    """Return how many files were passed over, and the commonest of their suffixes."""
    most = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))[:5]
    told = [f"{count:,} {suffix or 'without one'}" for suffix, count in most]
    if rest := ignored.total() - sum(count for _, count in most):
        told.append(f"{rest:,} others")
    return f"{counted(ignored.total(), 'file')} in folders, hidden or of no known suffix ({', '.join(told)})"


def options_for(settings: TokenizeSettings, inputs: Inputs, vocabulary: str) -> TokenizeOptions:
    """Return what a worker is told; `vocabulary` is the tokenizer's name, or where the corpus carries its ranks."""
    return TokenizeOptions(
        output=settings.output,
        tokenizer=vocabulary,
        backend=settings.tokenizer.backend,
        validation_fraction=settings.validation_fraction,
        validation_tail=settings.validation_tail,
        split_seed=settings.split_seed,
        max_document_bytes=settings.max_document_bytes,
        tokenizer_digest=inputs.tokenizer.digest,
    )


def _carry_vocabulary(output: str, tokenizer: Tokenizer) -> str | None:
    """Write a vocabulary of the user's own into the corpus, where every worker and later stage finds it."""
    if tokenizer.name in PUBLISHED:
        return None
    assert isinstance(tokenizer, TiktokenTokenizer)
    write_ranks(Storage.of(output).join(VOCABULARY), tokenizer.ranks, tokenizer.specials)
    return VOCABULARY


def contents_of(
    settings: TokenizeSettings, inputs: Inputs, rows: Callable[[], Iterable[Row]], vocabulary: str
) -> ManifestContents:
    """Return what the manifest says of the shards whose rows `rows` gives anew each time it is called.

    Rejects get the numbers of their lines on the way.
    """
    tokenizer, plans = inputs.tokenizer, inputs.plans
    facts = gather(plans, rows())
    numbered = number_lines(settings.output, plans, facts, rows())
    return ManifestContents(
        settings=inputs.decisive,
        input_fingerprint=inputs.plans.fingerprint,
        weights={source.name: source.weight for source in settings.named_sources()},
        tokenizer=TokenizerEntry(vocabulary, tokenizer.digest, tokenizer.vocabulary_size, tokenizer.end_of_text),
        shards=_entries(rows(), numbered),
        files=(
            FileEntry(file.source, file.root, file.name, file.num_bytes, file.changed_ns, digest)
            for file, digest in zip(plans.files, file_digests(plans, facts), strict=True)
        ),
        num_documents_in=sum(row["num_documents_in"] for row in rows()),
        num_tails=sum(row.get("num_tails", 0) for row in rows()),  # unfinished jobs of before have none
        notes={"warnings": [warning for row in rows() for warning in row["warnings"]]},
    )


def _check_documents(settings: TokenizeSettings, rows: Iterable[Row]) -> None:
    """Raise CorpusError where too many documents were set aside, or none was kept."""
    documents = rejected = 0
    for row in rows:
        documents += row["num_documents_in"]
        rejected += row["num_rejected"]
    if documents == rejected:
        raise CorpusError(
            settings.output,
            f"no usable document ({rejected:,} set aside)",
            "at least one",
            "look into its rejects folder",
        )
    if rejected > settings.max_reject_share * documents:
        raise CorpusError(
            f"{settings.output}: max_reject_share",
            f"{rejected:,} of {documents:,} documents set aside",
            f"at most a share of {settings.max_reject_share}",
            "look into its rejects folder; mend the input or raise the limit",
        )


def _entries(rows: Iterable[Row], renewed: Mapping[str, ShardStats]) -> Iterator[ShardEntry]:
    for row in rows:
        for file in row["files"]:
            stats = renewed.get(file["path"]) or ShardStats(**file["stats"])
            yield ShardEntry(file["split"], row["source"], row["index"], file["path"], stats)


def summary_of(written: Manifest) -> Tokenized:
    """Return what a corpus holds, over all splits."""
    splits = written.splits.values()
    return Tokenized(
        written.root_digest,
        sum(split.num_shards for split in splits),
        sum(split.num_documents for split in splits),
        sum(split.num_tokens for split in splits),
        written.num_rejected,
    )


def record(run: Run, settings: TokenizeSettings, inputs: Inputs, made: Tokenized) -> None:  # noqa: ARG001 - a stage's
    """Record what the corpus in the output folder holds."""
    written = manifest.read(settings.output)
    for name, split in written.splits.items():
        counts = {"documents": split.num_documents, "tokens": split.num_tokens, "bytes": split.num_bytes}
        run.log_metrics({f"{name}/{count}": value for count, value in counts.items()}, step=0)
    totals = {f"{name}/num_tokens": split.num_tokens for name, split in written.splits.items()}
    run.log_dataset("corpus", written.root_digest, settings.output, context="output", profile=totals)
    run.set_tags({"herd.corpus": written.root_digest})
    log_output(run, settings.output, manifest.MANIFEST)


def _spec(source: Any, kind: Literal["text", "midi"]) -> SourceSpec:
    return SourceSpec(**source.model_dump(), kind=kind)
