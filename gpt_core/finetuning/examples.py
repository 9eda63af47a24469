"""Supervised examples out of JSON-lines and parquet files, and what could not be one, with place and reason.

Read by the worker that tokenizes them. Every record becomes either an example or a reject; blank lines are no
records. Positions are bytes of the decompressed file, or rows of a parquet file.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from gpt_core.documents.arrow_batches import DAMAGED, first_line
from gpt_core.documents.byte_stream import RawFile
from gpt_core.documents.document_batch import ReadingOptions, Reject
from gpt_core.documents.reader import read_batches
from gpt_core.documents.shard_plan import Piece, ShardPlan
from gpt_core.documents.source_files import SourceFile, SourceSpec, list_files
from gpt_core.errors import CorpusError
from gpt_core.storage import Storage, is_url

MAX_EXAMPLE_BYTES = 1 << 20
"""A longer record is set aside unread; no model here has a context for it."""
_ROWS = 1024
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Fields:
    """The names of the two fields of a record, and whether the source may be empty."""

    source: str = "source"
    target: str = "target"
    allow_empty_source: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """One source with its target, and where its record lies."""

    source: str
    target: str
    file: str
    start: int
    end: int


def list_example_files(paths: tuple[str, ...]) -> list[SourceFile]:
    """Return the files that paths, folders, globs and URLs name, in the order of their names.

    Raises:
        CorpusError: There is no such file, or one that is neither JSON lines nor parquet.
    """
    for path in paths:
        place = path if is_url(path) else str(Path(path).expanduser())
        if not any(sign in place for sign in "*?[") and not Storage.of(place).exists(place):
            raise CorpusError(path, "no such file", "a file of examples", "correct the name")
    files = list_files(SourceSpec("examples", paths))
    for file in files:
        if file.format not in {"jsonl", "parquet"}:
            raise CorpusError(file.path, f"a {file.format} file", ".jsonl or .parquet", "convert or rename it")
    return files


def read_examples(plan: ShardPlan, fields: Fields) -> Iterator[Example | Reject]:
    """Yield every example and reject of a plan, in order but for rejects of a block, which come after it.

    Raises:
        CorpusError: A file has gone or changed its size since it was planned.
    """
    for piece in plan.pieces:
        yield from _parquet_rows(piece, fields) if piece.file.format == "parquet" else _json_lines(piece, fields)


def _json_lines(piece: Piece, fields: Fields) -> Iterator[Example | Reject]:
    """Yield a piece's lines, read as the documents of a text whose separator is the end of a line."""
    lines = replace(piece.file, format="text", separator="\n")
    whole = ShardPlan(0, piece.file.source, (replace(piece, file=lines),))
    for batch in read_batches(whole, ReadingOptions(MAX_EXAMPLE_BYTES)):
        for document in batch.documents():
            if not document.text.strip():
                continue
            try:
                record = orjson.loads(document.text)
            except ValueError as error:
                reason = f"found broken JSON ({error}); expected one JSON object on the line"
                yield Reject(document.file, None, document.start, reason)
            else:
                yield _example(record, fields, (document.file, document.start, document.end))
        yield from batch.rejects


def _parquet_rows(piece: Piece, fields: Fields) -> Iterator[Example | Reject]:
    """Yield the rows of the piece's row groups: group i of n belongs where byte floor(i * size / n) lies."""
    name, row = piece.file.name, 0
    with RawFile(piece.file) as raw:
        try:
            parquet = pq.ParquetFile(pa.PythonFile(raw, "r"), pre_buffer=False)
            columns = [fields.source, fields.target]
            fault = _fault_of_columns(parquet.schema_arrow.names, columns)
            for group, rows in _row_groups(piece, parquet.metadata):
                row = rows.start
                if fault:
                    yield from (Reject(name, None, each, fault) for each in rows)
                    continue
                for batch in parquet.iter_batches(_ROWS, row_groups=[group], columns=columns, use_threads=False):
                    for index in range(batch.num_rows):
                        yield _example_of_row(batch, index, fields, (name, row, row + 1))
                        row += 1
        except DAMAGED as error:
            found = f"found unreadable data from row {row} ({first_line(error)})"
            yield Reject(name, None, row, f"{found}; expected a whole parquet file")


def _row_groups(piece: Piece, metadata: pq.FileMetaData) -> Iterator[tuple[int, range]]:
    """Yield the piece's row groups by number, each with its rows."""
    first, count = 0, metadata.num_row_groups
    for group in range(count):
        following = first + metadata.row_group(group).num_rows
        byte = group * piece.file.num_bytes // count
        if piece.start <= byte and (piece.end is None or byte < piece.end):
            yield group, range(first, following)
        first = following


def _fault_of_columns(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    for name in wanted:
        if name not in names:
            return _missing(name, names)
        if (count := names.count(name)) > 1:
            return f"found {count} columns {name!r}; expected one"
    return None


def _example_of_row(batch: pa.RecordBatch, row: int, fields: Fields, place: tuple[str, int, int]) -> Example | Reject:
    try:  # Arrow does not check that strings are UTF-8; Python does here
        record = {name: batch.column(name)[row].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        return Reject(place[0], None, place[1], f"found {error}; expected valid UTF-8")
    return _example(record, fields, place)


def _example(record: Any, fields: Fields, place: tuple[str, int, int]) -> Example | Reject:
    """Return the example of a record that lies at (file, start, end)."""
    if not isinstance(record, dict):
        expected = f"expected an object with {fields.source!r} and {fields.target!r}"
        return Reject(place[0], None, place[1], f"found {repr(record)[:60]}; {expected}")
    for name in (fields.source, fields.target):
        may_be_empty = name == fields.source and fields.allow_empty_source
        if fault := _fault(record, name, may_be_empty=may_be_empty):
            return Reject(place[0], None, place[1], fault)
    return Example(record[fields.source], record[fields.target], *place)


def _fault(record: dict[str, Any], name: str, *, may_be_empty: bool) -> str | None:
    if name not in record:
        return _missing(name, record)
    value = record[name]
    if not isinstance(value, str):
        return f"found {repr(value)[:60]} in {name!r}; expected a text"
    if not value.strip() and not may_be_empty:
        return f"found an empty text in {name!r}; expected at least one character"
    return None


def _missing(name: str, there: Iterable[str]) -> str:
    told = ", ".join(sorted(there)[:8]) or "none"
    return f"found no field {name!r} (fields: {told[:200]}); expected a text in {name!r}"


def digest_of(files: Sequence[SourceFile]) -> str:
    """Return the xxh3_128 of the files' contents as stored, so that a change of any of them is seen."""
    digest = xxhash.xxh3_128()
    for file in files:
        with RawFile(file) as raw:
            while data := raw.read(_READ_BYTES):
                digest.update(data)
    return digest.hexdigest()
