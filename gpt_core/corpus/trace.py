"""From a training step to the bytes of text it read, and from a document to the steps that read it.

Pure look-ups by bisection over the manifest and over the record batches touched; nothing is scanned.
A document's id is its shard's path and its row there: ``train/00000042.arrow:17``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow.compute import SetLookupOptions, call_function

from gpt_core.corpus.corpus import Corpus, Span
from gpt_core.corpus.order import Integers, Order
from gpt_core.corpus.shards import ShardReader
from gpt_core.errors import CorpusError
from gpt_core.storage import Storage


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """The tokens of one document that one row read.

    ``start`` and ``end`` are the document's bytes in its source file (decompressed; rows of parquet and Arrow).
    The row read the document's tokens from ``first_token`` on, ``num_tokens`` of its ``document_tokens``; the last
    of those is the end-of-text id, which no byte of the file stands for.
    """

    id: str
    file: str
    start: int
    end: int
    first_token: int
    num_tokens: int
    document_tokens: int


@dataclass(frozen=True, slots=True)
class CellTrace:
    """What one row of one step read, as documents in order; their tokens put together are the row's.

    ``paths`` says where each file lay when the corpus was made, a path or a URL, by the name that documents bear.
    """

    step: int
    row: int
    source: str
    epoch: int
    window: int
    parts: tuple[DocumentPart, ...]
    paths: dict[str, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """One row of one step that reads a document: tokens of the document from ``first_token`` on."""

    step: int
    row: int
    first_token: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a document lies: in its source's stream, in tokens, end of text included."""

    source: int
    start: int
    count: int


def trace_cell(corpus: Corpus, order: Order, step: int, row: int) -> CellTrace:
    """Return the documents that a row of a step reads, targets included.

    Raises:
        IndexError: The step is negative or has no such row.
    """
    cell = order.cell(step, row)
    spans = corpus.indexes[cell.source].spans(cell.window * order.window_tokens, order.window_tokens + 1)
    parts = tuple(part for span in spans for part in _parts(corpus, span))
    source = corpus.sources[cell.source]
    return CellTrace(step, row, source, cell.epoch, cell.window, parts, _paths(corpus, source, parts))


def trace_document(corpus: Corpus, order: Order, document: str, epoch: int = 0) -> list[Reading]:
    """Return every (step, row) that reads a token of a document in an epoch of its source, by step.

    The last tokens of a source, too few for a window, are read in no epoch; nor is a source of weight 0.

    Raises:
        CorpusError: The split has no such document.
    """
    place = _place(corpus, document)
    if not order.mixture.counts[place.source]:
        return []
    size, end = order.window_tokens, place.start + place.count
    first = max(-(-place.start // size) - 1, 0)  # the window whose last token, a target, is the document's first
    windows = np.arange(first, min((end - 1) // size + 1, order.num_windows[place.source]))
    steps, rows = order.inverse(place.source, epoch, windows)
    starts = np.maximum(windows * size, place.start)
    counts = np.minimum(windows * size + size + 1, end) - starts
    columns = (steps, rows, starts - place.start, counts)
    found = [Reading(*numbers) for numbers in zip(*(column.tolist() for column in columns), strict=True)]
    return sorted(found, key=lambda reading: (reading.step, reading.row))


def _paths(corpus: Corpus, source: str, parts: Iterable[DocumentPart]) -> dict[str, str]:
    files, names = corpus.manifest.files, pa.array(sorted({part.file for part in parts}), pa.string())
    named = call_function("is_in", [files["name"]], SetLookupOptions(names))
    of_source = call_function("equal", [files["source"], pa.scalar(source)])
    found = files.filter(call_function("and", [named, of_source])).select(["root", "name"]).to_pylist()
    return {file["name"]: Storage.of(file["root"]).join(file["name"]) for file in found}


def _parts(corpus: Corpus, span: Span) -> Iterator[DocumentPart]:
    reader = corpus.reader(span.shard)
    path = corpus.manifest.shards.column("path")[span.shard].as_py()
    first_rows = _bounds(corpus, span.shard, "num_documents")
    bounds, end = reader.token_bounds, span.start + span.count
    first = int(np.searchsorted(bounds, span.start, side="right")) - 1
    last = int(np.searchsorted(bounds, end, side="left"))
    for batch in range(first, last):
        for row, low, high in _rows_between(reader, batch, span.start, end):
            document = reader.document(batch, row)
            begin = max(span.start, low)
            yield DocumentPart(
                f"{path}:{first_rows[batch] + row}",
                document.file,
                document.start,
                document.end,
                begin - low,
                min(end, high) - begin,
                high - low,
            )


def _rows_between(reader: ShardReader, batch: int, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield rows of a batch that hold tokens start..end of the shard, each with its own first and past-last token."""
    offsets = reader.document_offsets(batch) + reader.token_bounds[batch]
    first = max(int(np.searchsorted(offsets, start, side="right")) - 1, 0)
    last = min(int(np.searchsorted(offsets, end, side="left")), len(offsets) - 1)
    for row in range(first, last):
        yield row, int(offsets[row]), int(offsets[row + 1])


def _bounds(corpus: Corpus, shard: int, column: str) -> Integers:
    return np.concatenate([[0], np.cumsum(corpus.batches(shard).column(column).to_numpy())])


def _place(corpus: Corpus, document: str) -> _Place:
    path, _, number = document.rpartition(":")
    shard, source = _shard(corpus, path)
    bounds = _bounds(corpus, shard, "num_documents")
    if not number.isdecimal() or int(number) >= bounds[-1]:
        expected = f"a row of {path}, 0 to {bounds[-1] - 1}"
        raise CorpusError(document, f"row {number!r}", expected, "take an id that `herd trace --step` prints")
    batch = int(np.searchsorted(bounds, int(number), side="right")) - 1
    reader = corpus.reader(shard)
    offsets, row = reader.document_offsets(batch), int(number) - int(bounds[batch])
    index = corpus.indexes[source]
    first = index.bounds[np.searchsorted(index.rows, shard)] + reader.token_bounds[batch]
    return _Place(source, int(first + offsets[row]), int(offsets[row + 1] - offsets[row]))


def _shard(corpus: Corpus, path: str) -> tuple[int, int]:
    """Return a shard's row in the manifest's table and the number of its source."""
    shard = corpus.manifest.shards.column("path").index(path).as_py()
    for source, index in enumerate(corpus.indexes):
        if shard in index.rows:
            return shard, source
    found, expected = f"no shard {path!r} in the split {corpus.split!r}", "an id such as train/00000042.arrow:17"
    raise CorpusError(corpus.folder, found, expected, "take an id that `herd trace --step` prints")
