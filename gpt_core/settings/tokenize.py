"""Settings of the jobs that make, check and read a corpus."""

import os
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from gpt_core.settings.base import (
    Count,
    Index,
    JobSettings,
    Names,
    Place,
    Places,
    PoolSettings,
    Positive,
    Settings,
    Share,
    absolute,
)


class SourceSettings(Settings):
    """One named source of text."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name in manifests, traces and mixtures: letters, digits, dots, dashes."""
    paths: Annotated[Places, Field(min_length=1)]
    """Files, folders, globs or URLs (s3://, gs://); $STDLIB is Python's own standard library."""
    exclude: Names = ()
    """Globs, relative to the path they are found under, of files to leave out."""
    weight: Positive = 1.0
    """Share of training tokens drawn from this source, relative to the other sources' weights."""
    text_field: str = "text"
    """Field of jsonl, parquet and Arrow rows that holds the document."""
    separator: str | None = None
    """String between the documents of a text file; null makes each file one document."""


def _absolute_if_file(name: str) -> str:
    return absolute(name) if os.path.isfile(os.path.expanduser(name)) else name  # noqa: PTH111, PTH113


TokenizerName = Annotated[str, AfterValidator(_absolute_if_file)]


class TokenizerSettings(Settings):
    """The vocabulary, and the program that applies it."""

    name: TokenizerName = "gpt2"
    """"gpt2", "bytes" (256 bytes and end-of-text), "music" (performance events), or a tiktoken ranks file's path."""
    backend: Literal["auto", "tiktoken", "gigatoken"] = "auto"
    """auto takes gigatoken where it is installed, checks it against tiktoken on every shard, and falls back."""


class TokenizeSettings(Settings):
    """What `herd tokenize` reads and writes."""

    output: Place
    """Folder or URL of the corpus: shards, rejects and manifest."""
    input: Places = ()
    """Files, folders, globs or URLs of a corpus with one source; use `sources` for several."""
    sources: Annotated[tuple[SourceSettings, ...], Field(strict=False)] = ()
    """Named sources with weights."""
    kind: Literal["text", "midi"] = "text"
    """midi: .mid files, each a document of performance events, in the vocabulary "music"."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    shard_bytes: Count = 67_108_864
    """Input bytes a shard, before tokenizing (compressed bytes of compressed files)."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of documents held out as the validation split, chosen by a hash of each document's text."""
    validation_tail: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each document's end held out instead: for a corpus of few long texts, such as one book."""
    split_seed: Index = 0
    """Seed of the hash that chooses the held-out documents."""
    max_document_bytes: Count = 8_388_608
    """Longer documents are set aside in rejects/; at worst an actor's memory grows by 50 times the longest."""
    max_reject_share: Share = 1.0
    """The job fails, and commits nothing, when more than this share of documents is set aside."""
    pool: PoolSettings = PoolSettings()

    @model_validator(mode="after")
    def _one_kind_of_input(self) -> Self:
        if bool(self.input) == bool(self.sources):
            found = "both" if self.input else "neither"
            raise ValueError(f"{found} of input and sources given; give one of them")
        if self.validation_fraction and self.validation_tail:
            raise ValueError("validation_fraction and validation_tail both given; hold out documents or their ends")
        if self.kind == "midi":
            self._take_music()
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"source name {twice[0]!r} given {names.count(twice[0])} times; names are unique")
        return self

    def _take_music(self) -> None:
        """Set the vocabulary that follows from kind midi, unless another one was asked for."""
        if self.validation_tail:
            raise ValueError("validation_tail cuts texts, and kind midi has none; hold out a validation_fraction")
        if "name" in self.tokenizer.model_fields_set and self.tokenizer.name != "music":
            raise ValueError(
                f"kind midi with the tokenizer {self.tokenizer.name!r}; it takes music, leave the name out"
            )
        # The object is frozen for its users; here it is still being made.
        object.__setattr__(self, "tokenizer", self.tokenizer.model_copy(update={"name": "music"}))

    def named_sources(self) -> tuple[SourceSettings, ...]:
        """Return the sources; `input` becomes one source named "text"."""
        return self.sources or (SourceSettings(name="text", paths=self.input),)


class TrainTokenizerSettings(Settings):
    """What `herd train-tokenizer` learns from and writes."""

    input: Annotated[Places, Field(min_length=1)]
    """Files, folders, globs or URLs of text, read as `herd tokenize` reads them."""
    output: Place
    """File the vocabulary is written to, in tiktoken's format; `--tokenizer.name FILE` then takes it."""
    vocabulary_size: Annotated[int, Field(ge=257)] = 8192
    """Ids of the tokenizer, the 256 bytes and the end-of-text token included."""
    exclude: Names = ()
    """Globs of files to leave out."""
    text_field: str = "text"
    """Field of jsonl, parquet and Arrow rows that holds the document."""
    separator: str | None = None
    """String between the documents of a text file; null makes each file one document."""
    max_document_bytes: Count = 8_388_608
    """Longer documents are left out."""
    max_text_bytes: Count | None = None
    """Text read at most, from the start of the input; null reads all."""


class VerifySettings(Settings):
    """What `herd verify` checks."""

    folder: Place
    """Folder or URL of a corpus."""
    num_threads: Count = 1
    """Files read at once."""


class TraceSettings(Settings):
    """What `herd trace` looks up: a step's row, or a document."""

    corpus: Place
    """Folder or URL of the corpus."""
    run: Place | None = None
    """Run folder whose seed, context and batch are meant; null takes those below."""
    seed: Index = 0
    """Seed of the data order."""
    context_tokens: Count = 1024
    """Tokens of a training window."""
    batch_sequences: Count = 512
    """Rows of an optimizer step."""
    block_windows: Count | None = None
    """As the run's train.block_windows."""
    step: Count | None = None
    """Optimizer step to trace, counted from 1 as in logs."""
    row: Index | None = None
    """Row of the step, counted from 0."""
    document: str | None = None
    """Document to trace: its shard and its row there, such as train/00000042.arrow:17."""
    epoch: Index = 0
    """Epoch of the document's source, counted from 0."""

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        asks_cell = self.step is not None and self.row is not None
        if asks_cell == (self.document is not None) or (self.step is None) != (self.row is None):
            raise ValueError("give step and row, or document")
        return self


class TokenizeJob(TokenizeSettings, JobSettings):
    """Settings of `herd tokenize`."""
