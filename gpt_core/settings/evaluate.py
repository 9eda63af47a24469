"""Settings of the job that measures a checkpoint."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from gpt_core.settings.base import Count, JobSettings, Place, PoolSettings, Settings, absolute

_KINDS = ("text", "hellaswag", "lambada", "cloze")
_OWN = {
    "stride_tokens": "text",
    "num_words": "text",
    "text_field": "text",
    "style": "hellaswag",
    "blank": "cloze",
}


class TaskSettings(Settings):
    """One task: its kind, its file, and how it is scored. KIND=FILE says the first two."""

    kind: Literal["text", "hellaswag", "lambada", "cloze"]
    """text: perplexity and bits per byte; hellaswag, cloze: choose among endings; lambada: say the last word."""
    path: Place
    """File, folder, glob or URL. text: what `herd tokenize` reads; the others: JSON lines, plain, .gz or .zst."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    """Name of the results; null takes the file's name without its suffixes."""
    max_items: Count | None = None
    """Rows, or documents of text, scored at most, from the start; null scores all."""
    stride_tokens: Count | None = None
    """text: tokens by which the window moves; null moves it by its whole length, each token then has less context."""
    num_words: Count | None = None
    """text: words that word_perplexity divides by, where a count is published; null counts words and line ends."""
    text_field: str = "text"
    """text: field of jsonl, parquet and Arrow rows that holds the document."""
    style: Literal["harness", "plain"] = "harness"
    """hellaswag: harness words the texts as lm-evaluation-harness does, plain takes ctx and endings as they stand."""
    blank: Annotated[str, Field(min_length=1)] = "____"
    """cloze: what stands in the text where the answer belongs."""

    @property
    def label(self) -> str:
        """The name of the results."""
        stem = PurePosixPath(self.path.rstrip("/")).name
        while PurePosixPath(stem).suffix in {".gz", ".zst", ".zstd", ".jsonl", ".json", ".txt", ".parquet", ".arrow"}:
            stem = PurePosixPath(stem).stem
        return self.name or re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).lstrip("_.-") or self.kind

    @model_validator(mode="after")
    def _own_settings(self) -> Self:
        for name, kind in _OWN.items():
            if kind != self.kind and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for tasks of kind {kind}, and this one is {self.kind}; leave it out")
        return self


def _task(given: Any) -> Any:
    """Return what KIND=FILE stands for; anything else as it is."""
    if not isinstance(given, str):
        return given
    kind, equals, path = given.partition("=")
    if kind not in _KINDS or not equals or not path:
        raise ValueError(f"found {given!r}; expected KIND=FILE, KIND one of {', '.join(_KINDS)}; correct it")
    return TaskSettings(kind=kind, path=absolute(path))  # pyright: ignore[reportArgumentType]


TaskEntry = Annotated[TaskSettings, BeforeValidator(_task, json_schema_input_type=str | TaskSettings)]


class EvaluateSettings(Settings):
    """What `herd evaluate` measures."""

    checkpoint: Place
    """Folder or URL of a checkpoint, or of a run whose newest whole one is taken; or MLflow's models:/NAME@ALIAS or
    models:/NAME/VERSION."""
    corpus: Place | None = None
    """Corpus to measure on; null where tasks are given."""
    tasks: Annotated[tuple[TaskEntry, ...], Field(strict=False)] = ()
    """Tasks to score, each KIND=FILE (text=wiki.txt hellaswag=val.jsonl) or a section."""
    output: Place
    """Folder or URL for the results."""
    split: Literal["train", "validation"] = "validation"
    """Split of the corpus to measure on."""
    context_tokens: Count | None = None
    """Tokens of a window; null takes the model's num_positions."""
    max_windows: Count | None = None
    """Windows of the corpus measured at most, from the start of the split; null measures all."""
    windows_per_shard: Count = 64
    """Windows, or rows of a task, of one planned piece of work."""
    batch_sequences: Count = 16
    """Windows or sequences of one forward pass."""
    pool: PoolSettings = PoolSettings(cpus_per_actor=0.9)

    @model_validator(mode="after")
    def _one_name_each(self) -> Self:
        names = [task.label for task in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two tasks are called {twice[0]!r}; give one of them a name")
        return self

    @model_validator(mode="after")
    def _something_to_measure(self) -> Self:
        if self.corpus is None and not self.tasks:
            raise ValueError("neither corpus nor tasks given; give a corpus, or tasks as KIND=FILE, or both")
        return self


class EvaluateJob(EvaluateSettings, JobSettings):
    """Settings of `herd evaluate`."""
