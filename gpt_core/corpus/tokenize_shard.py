"""The worker that turns one shard plan into one committed shard; no Ray, runs in any process.

What it writes depends on the plan's input and the options alone: not on the backend, the time, the host, earlier
shards, or how often it was killed before. A plan done again makes the same files.
"""

import dataclasses
import random
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash

from gpt_core.corpus.rejects import RejectWriter
from gpt_core.corpus.shards import ShardWriter, with_end_of_text
from gpt_core.documents.document_batch import DocumentBatch, ReadingOptions
from gpt_core.documents.document_tails import cut_tails
from gpt_core.documents.piece_witness import PieceFacts
from gpt_core.documents.reader import read_batches
from gpt_core.documents.shard_plan import ShardPlan
from gpt_core.errors import SettingsError
from gpt_core.storage import Storage, full_disk_named
from gpt_core.tokens.tokenizer import Backend, Ids, Tokenizer, load_tokenizer

CHECKED_SHARE = 1 / 256
"""Share of a shard's text that "auto" encodes with both backends; tiktoken being 20 times slower, 8% of the time."""


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizeOptions:
    """What decides a shard's bytes, besides its plan, and where it goes.

    Args:
        output: Folder or URL of the corpus.
        tokenizer: Name or path, as for ``load_tokenizer``.
        backend: "auto" checks the fast backend against the reference on samples of each shard.
        validation_fraction: Share of documents held out, chosen by a hash of their text, so that equal texts fall
            on one side.
        validation_tail: Share of each document's end held out instead, see ``cut_tails``.
        split_seed: Key of that hash.
        max_document_bytes: Longer records are rejected. The default keeps a worker below 600 MB on the worst text
            known, one word of that length (581 MB measured); each byte more may cost 50 bytes.
        tokenizer_digest: The vocabulary expected; another one, found on this machine under the name, is refused.
    """

    output: str
    tokenizer: str = "gpt2"
    backend: Backend = "auto"
    validation_fraction: float = 0.0
    validation_tail: float = 0.0
    split_seed: int = 0
    max_document_bytes: int = 8 << 20
    tokenizer_digest: str | None = None


class ShardTokenizer:
    """Reads, tokenizes and commits shards, one after the other.

    Args:
        options: Picklable; sent to every worker.
        tokenizer: Takes the place of the options' tokenizer (its backend is then checked as under "auto").

    Raises:
        SettingsError: The tokenizer is unknown or another one than expected.
    """

    def __init__(self, options: TokenizeOptions, tokenizer: Tokenizer | None = None) -> None:
        self._options = options
        self._reference = load_tokenizer(options.tokenizer)
        self._tokenizer = tokenizer or load_tokenizer(options.tokenizer, options.backend)
        if options.tokenizer_digest not in {None, self._reference.digest}:
            found = f"a vocabulary of digest {self._reference.digest}"
            remedy = "put the same vocabulary file on every machine"
            raise SettingsError(f"tokenizer {options.tokenizer!r}", found, str(options.tokenizer_digest), remedy)

    def __call__(self, plan: ShardPlan) -> dict[str, Any]:
        """Write the plan's shards and rejects, each atomically, and return one row about them.

        The row is JSON: index, source, backend, warnings, num_input_bytes (as stored), num_text_bytes,
        num_documents_in as the reader met them, num_documents_kept, num_rejected, num_tails (held-out ends that are
        rows besides the kept documents), num_tokens, a list of files, each with split ("train", "validation" or
        "rejects"), path in the corpus and stats, and a list of digest and lines of each piece (``PieceFacts``).

        Raises:
            CorpusError: An input file has gone or changed.
            ResourceError: The disk is full; no temporary file is left.
        """
        needed = f"about {plan.num_bytes} bytes for shard {plan.index}, and as much for each other worker's"
        with full_disk_named(self._options.output, needed):
            try:
                return self._attempt(plan, self._tokenizer)
            except _DisagreementError as difference:
                row = self._attempt(plan, self._reference)
                row["warnings"].append(f"shard {plan.index}: {difference}; tokenized with {self._reference.backend}")
                return row

    def _attempt(self, plan: ShardPlan, tokenizer: Tokenizer) -> dict[str, Any]:
        reading = ReadingOptions(self._options.max_document_bytes)
        checked = self._options.backend == "auto" and tokenizer.backend != self._reference.backend
        check = _SampledCheck(self._reference, plan.index) if checked else None
        with _ShardOutput(self._options, plan, tokenizer) as output:
            for batch in read_batches(plan, reading, output.facts):
                heads, tails = batch, None
                if self._options.validation_tail:
                    heads, tails = cut_tails(batch, self._options.validation_tail)
                output.append(heads, *_encode(heads, tokenizer, check))
                if tails is not None:
                    output.append_held_out(tails, *_encode(tails, tokenizer, check))
            return output.commit()


class _DisagreementError(Exception):
    """The fast backend failed, or gave other ids than the reference."""


class _SampledCheck:
    """Compares a backend with the reference on documents drawn evenly from a shard, the same on every run."""

    def __init__(self, reference: Tokenizer, seed: int) -> None:
        self._reference = reference
        self._draw = random.Random(seed)  # noqa: S311 - not a secret
        self._num_bytes = 0
        self._num_checked_bytes = 0

    def encode(self, tokenizer: Tokenizer, batch: DocumentBatch) -> tuple[Ids, np.ndarray]:
        """Return the backend's ids of a batch, having compared some of them."""
        try:
            tokens, offsets = tokenizer.encode_many(batch.texts)
        except Exception as error:
            raise _DisagreementError(f"{tokenizer.backend} failed ({type(error).__name__}: {error})") from error
        self._num_bytes += batch.num_bytes
        while batch.texts and self._num_checked_bytes <= self._num_bytes * CHECKED_SHARE:
            index = self._draw.randrange(len(batch.texts))
            expected = self._reference.encode(batch.texts[index])
            if not np.array_equal(tokens[offsets[index] : offsets[index + 1]], expected):
                place = f"{batch.files[index]}, {batch.starts[index]} to {batch.ends[index]}"
                raise _DisagreementError(f"{tokenizer.backend} and {self._reference.backend} disagree on {place}")
            self._num_checked_bytes += len(batch.texts[index])
        return tokens, offsets


def _encode(batch: DocumentBatch, tokenizer: Tokenizer, check: _SampledCheck | None) -> tuple[Ids, np.ndarray]:
    return tokenizer.encode_many(batch.texts) if check is None else check.encode(tokenizer, batch)


class _ShardOutput:
    """The files of one shard while they are written; abandons them unless committed."""

    def __init__(self, options: TokenizeOptions, plan: ShardPlan, tokenizer: Tokenizer) -> None:
        self._options, self._plan, self._tokenizer = options, plan, tokenizer
        storage = Storage.of(options.output)
        self._paths = {split: f"{split}/{plan.index:08}.arrow" for split in ("train", "validation")}
        self._paths["rejects"] = f"rejects/{plan.index:08}.jsonl"
        self._writers = {
            split: ShardWriter(storage.join(self._paths[split]), tokenizer.dtype) for split in ("train", "validation")
        }
        in_mid_file = plan.pieces[0].start > 0
        self._rejects = RejectWriter(storage.join(self._paths["rejects"]), in_mid_file=in_mid_file)
        self._stack = ExitStack()
        self._num_text_bytes = 0
        self._num_tails = 0
        self.facts: list[PieceFacts] = []

    def append(self, batch: DocumentBatch, tokens: Ids, offsets: np.ndarray) -> None:
        """Write a batch's documents, each to its split, and its rejects."""
        self._rejects.append(self._plan.source, batch.rejects)
        self._num_text_bytes += batch.num_bytes
        if not batch.texts:
            return
        tokens, offsets = with_end_of_text(tokens, offsets, self._tokenizer.end_of_text)
        held_out = held_out_documents(batch.texts, self._options.validation_fraction, self._options.split_seed)
        self._append_to("train", batch, tokens, offsets, ~held_out)
        self._append_to("validation", batch, tokens, offsets, held_out)

    def append_held_out(self, batch: DocumentBatch, tokens: Ids, offsets: np.ndarray) -> None:
        """Write the ends of documents to the validation split."""
        self._num_tails += len(batch.texts)
        if batch.texts:
            tokens, offsets = with_end_of_text(tokens, offsets, self._tokenizer.end_of_text)
            self._append_to("validation", batch, tokens, offsets, np.ones(len(batch.texts), bool))

    def commit(self) -> dict[str, Any]:
        """Give every file its name and return the shard's row."""
        writers = {**self._writers, "rejects": self._rejects}
        stats = {split: writer.close() for split, writer in writers.items()}
        files = [
            {"split": split, "path": self._paths[split], "stats": dataclasses.asdict(found)}
            for split, found in stats.items()
            if found.num_documents
        ]
        num_rows = stats["train"].num_documents + stats["validation"].num_documents
        return {
            "index": self._plan.index,
            "source": self._plan.source,
            "backend": self._tokenizer.backend,
            "warnings": [],
            "num_input_bytes": self._plan.num_bytes,
            "num_text_bytes": self._num_text_bytes,
            "num_documents_in": sum(fact.num_records for fact in self.facts),
            "num_documents_kept": num_rows - self._num_tails,
            "num_rejected": stats["rejects"].num_documents,
            "num_tails": self._num_tails,
            "num_tokens": sum(found.num_tokens for found in stats.values()),
            "files": files,
            "pieces": [[fact.digest, fact.num_lines] for fact in self.facts],
        }

    def __enter__(self) -> Self:
        for writer in (*self._writers.values(), self._rejects):
            self._stack.enter_context(writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _append_to(
        self, split: str, batch: DocumentBatch, tokens: Ids, offsets: np.ndarray, chosen: np.ndarray
    ) -> None:
        writer = self._writers[split]
        if chosen.all():
            writer.append(tokens, offsets, batch.files, batch.starts, batch.ends)
        elif chosen.any():
            rows = np.flatnonzero(chosen).tolist()
            lengths = np.diff(offsets)
            tokens = tokens[np.repeat(chosen, lengths)]
            offsets = np.concatenate([[0], np.cumsum(lengths[chosen])])
            part = batch.select(rows)
            writer.append(tokens, offsets, part.files, part.starts, part.ends)


def held_out_documents(texts: list[str], fraction: float, seed: int) -> np.ndarray:
    """Return bool [n]: whether each text is held out; a function of the text, the share and the seed alone.

    xxh3_64 of the UTF-8 bytes, keyed by the seed, below ``fraction`` of its range.
    """
    if fraction <= 0:
        return np.zeros(len(texts), bool)
    limit = round(fraction * 2**64)
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(text.encode("utf-8"), seed) < limit for text in texts), bool, len(texts))
