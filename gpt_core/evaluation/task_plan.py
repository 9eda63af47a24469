"""Evaluation tasks as planned pieces: which files, which rows or windows, and what is set aside.

A task is a kind and its files. The driver reads the files once, finds the rows that are no items, and cuts the rest
into ranges; each worker reads its own range again. The ranges depend on the files and the settings alone.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from gpt_core.counted import counted
from gpt_core.documents.byte_stream import RawFile
from gpt_core.documents.document_batch import Document, ReadingOptions
from gpt_core.documents.reader import read_documents
from gpt_core.documents.shard_plan import Piece, ShardPlan
from gpt_core.documents.source_files import SourceFile, SourceSpec, list_files
from gpt_core.errors import CorpusError, SettingsError
from gpt_core.evaluation.task_items import Item, ItemKind, UnusableRowError, Wording, parse_item
from gpt_core.evaluation.text_windows import Sliding, count_words
from gpt_core.generation.prompt_files import RawRow, read_rows
from gpt_core.tokens.tokenizer import Tokenizer

_MOST_TEXT_BYTES = 1 << 30
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Task:
    """One task as it was asked for.

    Attributes:
        name: What its results are called.
        kind: "text" or a kind of items.
        path: File, folder, glob or URL.
        wording: How rows become items; None for text.
        stride_tokens: text: how far the window moves; None moves it by its whole length.
        num_words: text: the words to divide by; None counts them.
        max_items: Rows, or documents of text, at most, from the start.
        text_field: text: the field of jsonl, parquet and Arrow rows.
    """

    name: str
    kind: Literal["text"] | ItemKind
    path: str
    wording: Wording | None = None
    stride_tokens: int | None = None
    num_words: int | None = None
    max_items: int | None = None
    text_field: str = "text"


@dataclass(frozen=True, slots=True)
class SetAside:
    """A row that is not scored: its file, its line or None, and why."""

    task: str
    file: str
    line: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class ItemRange:
    """Consecutive rows of one file, those that are no items included."""

    task: int
    file: int
    start: int
    first_line: int
    num_lines: int


@dataclass(frozen=True, slots=True)
class TextRange:
    """Consecutive windows, counted from the first window of the first document.

    Attributes:
        task: The task's place in the list of tasks.
        file: The file's place in the task's list.
        start: The byte at which reading begins.
        skipped_documents: Documents from there to read past.
        first_window: The first window.
        num_windows: Windows of the range; they may go on into later documents.
    """

    task: int
    file: int
    start: int
    skipped_documents: int
    first_window: int
    num_windows: int


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """A task with its files, read once: the ranges, what was set aside, and what words and lines the text has."""

    task: Task
    files: tuple[SourceFile, ...]
    ranges: tuple[ItemRange | TextRange, ...]
    rejects: tuple[SetAside, ...]
    num_items: int
    num_words: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """What the ranges of a job's tasks depend on besides the files."""

    tokenizer: Tokenizer
    context_tokens: int
    windows_per_shard: int


def list_task_files(task: Task) -> tuple[SourceFile, ...]:
    """Return the task's files by name.

    Raises:
        CorpusError: There is none, or one of the wrong format.
    """
    files = tuple(list_files(SourceSpec(task.name, (task.path,), text_field=task.text_field)))
    for file in files:
        if task.kind != "text" and file.format != "jsonl":
            remedy = "name it .jsonl, or convert it to one JSON object a line"
            raise CorpusError(file.path, f"a {file.format} file", f"JSON lines of {task.kind} items", remedy)
    return files


def fingerprint(files: tuple[SourceFile, ...]) -> dict[str, str]:
    """Return the SHA-256 of each file's bytes as they are stored, by name."""
    digests = {}
    for file in files:
        with RawFile(file) as raw:
            digest = hashlib.sha256()
            while data := raw.read(_READ_BYTES):
                digest.update(data)
        digests[file.name] = digest.hexdigest()
    return digests


def sliding_of(task: Task, context_tokens: int) -> Sliding:
    """Return how a text task's window moves.

    Raises:
        SettingsError: It would pass over tokens.
    """
    stride = task.stride_tokens or context_tokens
    if stride > context_tokens:
        remedy = "shorten the stride, or lengthen context_tokens"
        raise SettingsError(
            f"tasks: {task.name}: stride_tokens", str(stride), f"at most the context of {context_tokens}", remedy
        )
    return Sliding(context_tokens, stride)


def plan_task(task: Task, index: int, cut: Cut) -> TaskPlan:
    """Read a task's files and cut them into ranges of at most ``windows_per_shard`` rows or windows.

    Raises:
        CorpusError: No row can be scored.
    """
    files = list_task_files(task)
    plan = _plan_text(task, index, files, cut) if task.kind == "text" else _plan_items(task, index, files, cut)
    if not plan.num_items:
        raise nothing_to_score(task, plan.rejects)
    return plan


def nothing_to_score(task: Task, set_aside: Sequence[SetAside]) -> CorpusError:
    """Return the refusal of a task of which no row is left."""
    first = set_aside[0] if set_aside else None
    told = f", the first at {first.file}:{first.line}: {first.reason}" if first else ""
    found = f"nothing to score ({counted(len(set_aside), 'row')} set aside{told})"
    return CorpusError(task.path, found, f"at least one row of a {task.kind} task", "check the kind and the file")


def read_items(task: Task, files: tuple[SourceFile, ...], cut: ItemRange) -> Iterator[tuple[int, Item]]:
    """Yield line number and item of the usable rows of a range."""
    assert task.wording is not None
    for row in islice(read_rows(files[cut.file], (), cut.start, cut.first_line), cut.num_lines):
        item = _item(row, task.wording)
        if isinstance(item, Item):
            yield row.number, item


class WindowReader:
    """Reads ranges of windows; the tokens of the last document are kept, since a long one has many ranges."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text, self._tokens = "", []

    def __call__(
        self, files: tuple[SourceFile, ...], cut: TextRange, sliding: Sliding
    ) -> Iterator[tuple[Document, int, tuple[list[int], int]]]:
        """Yield document, window number and window (as ``Sliding.window`` returns it) of a range.

        Raises:
            CorpusError: The file no longer has the windows of the plan.
        """
        for document, first, last in self._parts(files, cut, sliding):
            for index in range(first, last):
                yield document, index, sliding.window(self._tokens, index, self._tokenizer.end_of_text)

    def _parts(
        self, files: tuple[SourceFile, ...], cut: TextRange, sliding: Sliding
    ) -> Iterator[tuple[Document, int, int]]:
        """Yield each document of a range, its tokens at hand, and its windows first..last - 1."""
        first, left = cut.first_window, cut.num_windows
        for document in islice(_documents(files[cut.file], cut.start), cut.skipped_documents, None):
            if document.text != self._text:
                self._text, self._tokens = document.text, self._tokenizer.encode(document.text).tolist()
            last = min(sliding.num_windows(len(self._tokens)), first + left)
            yield document, first, last
            left -= last - first
            first = 0
            if not left:
                return
        found, expected = f"{cut.num_windows - left} windows from byte {cut.start}", f"{cut.num_windows} as planned"
        raise CorpusError(files[cut.file].path, found, expected, "leave the input alone, and run again")


def _plan_items(task: Task, index: int, files: tuple[SourceFile, ...], cut: Cut) -> TaskPlan:
    assert task.wording is not None
    ranges: list[ItemRange] = []
    rejects: list[SetAside] = []
    num_items, left = 0, task.max_items
    for number, file in enumerate(files):
        open_range: ItemRange | None = None
        for row in islice(read_rows(file, ()), left):
            item = _item(row, task.wording)
            if isinstance(item, str):
                rejects.append(SetAside(task.name, file.name, row.number, item))
            num_items += isinstance(item, Item)
            open_range = open_range or ItemRange(index, number, row.start, row.number, 0)
            open_range = replace(open_range, num_lines=row.number - open_range.first_line + 1)
            if open_range.num_lines == cut.windows_per_shard:
                ranges.append(open_range)
                open_range = None
            left = None if left is None else left - 1
        ranges += [open_range] if open_range else []
    return TaskPlan(task, files, tuple(ranges), tuple(rejects), num_items)


def _item(row: RawRow, wording: Wording) -> Item | str | None:
    """Return a row's item, the reason why it is none, or None for a blank line."""
    if row.fault:
        return row.fault
    assert isinstance(row.content, bytes)
    if not row.content.strip():
        return None
    try:
        return parse_item(row.content, wording)
    except UnusableRowError as error:
        return str(error)


def _plan_text(task: Task, index: int, files: tuple[SourceFile, ...], cut: Cut) -> TaskPlan:
    sliding = sliding_of(task, cut.context_tokens)
    ranges: list[TextRange] = []
    rejects: list[SetAside] = []
    num_documents, num_words = 0, 0
    for number, file in enumerate(files):
        seekable = file.divisible and file.format in {"text", "jsonl"}  # positions in tables are rows
        cutter = _TextCutter(index, number, cut.windows_per_shard, seekable=seekable)
        for found in _documents_and_rejects(file):
            if isinstance(found, SetAside):
                rejects.append(replace(found, task=task.name))
            elif num_documents != task.max_items:
                num_documents += 1
                num_words += count_words(found.text)
                cutter.add(found, sliding.num_windows(len(cut.tokenizer.encode(found.text))))
        ranges += cutter.close()
    return TaskPlan(task, files, tuple(ranges), tuple(rejects), num_documents, task.num_words or num_words)


class _TextCutter:
    """Cuts the windows of a file's documents, in order, into ranges of equal length."""

    def __init__(self, task: int, file: int, windows_per_shard: int, *, seekable: bool) -> None:
        self._empty = TextRange(task, file, 0, 0, 0, 0)
        self._windows_per_shard, self._seekable = windows_per_shard, seekable
        self._ranges: list[TextRange] = []
        self._open = self._empty
        self._num_documents = 0

    def add(self, document: Document, num_windows: int) -> None:
        """Take the next document."""
        window = 0
        while window < num_windows:
            if not self._open.num_windows:
                self._open = replace(self._place_of(document), first_window=window)
            taken = min(num_windows - window, self._windows_per_shard - self._open.num_windows)
            self._open = replace(self._open, num_windows=self._open.num_windows + taken)
            window += taken
            if self._open.num_windows == self._windows_per_shard:
                self._end()
        self._num_documents += 1

    def close(self) -> list[TextRange]:
        """Return the ranges."""
        if self._open.num_windows:
            self._end()
        return self._ranges

    def _place_of(self, document: Document) -> TextRange:
        """Return the empty range from a document on; the first one's starts at byte 0, before a byte-order mark."""
        if self._seekable:
            return replace(self._empty, start=document.start if self._num_documents else 0)
        return replace(self._empty, skipped_documents=self._num_documents)

    def _end(self) -> None:
        self._ranges.append(self._open)
        self._open = self._empty


def _documents(file: SourceFile, start: int = 0) -> Iterator[Document]:
    return (found for found in _documents_and_rejects(file, start) if isinstance(found, Document))


def _documents_and_rejects(file: SourceFile, start: int = 0) -> Iterator[Document | SetAside]:
    plan = ShardPlan(0, file.source, (Piece(file, start),))
    for found in read_documents(plan, ReadingOptions(_MOST_TEXT_BYTES)):
        yield found if isinstance(found, Document) else SetAside("", found.file, found.line, found.reason)


def settings_of(task: Task, files: tuple[SourceFile, ...]) -> dict[str, Any]:
    """Return what decides a task's result: its files' digests, and the settings that its kind reads."""
    decisive: dict[str, Any] = {"kind": task.kind, "files": fingerprint(files), "max_items": task.max_items}
    if task.kind == "text":
        given = {"stride_tokens": task.stride_tokens, "num_words": task.num_words, "text_field": task.text_field}
        return decisive | given
    assert task.wording is not None
    own = {"hellaswag": {"style": task.wording.style}, "cloze": {"blank": task.wording.blank}}
    return decisive | own.get(task.kind, {})
