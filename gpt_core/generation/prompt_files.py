"""The rows of prompt files as they stand: lines of text and JSON, rows of parquet and Arrow, from any row on.

A MIDI file is one row, its performance events as text.

Read by ``gpt_core.generation.prompts``, which says what they mean. A row that cannot be read at all comes with
the fault in its place; a disk or network that fails raises.
"""

import itertools
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpt_core.documents.arrow_batches import DAMAGED, first_line, sound
from gpt_core.documents.byte_stream import ByteStream, RawFile
from gpt_core.documents.records import Oversize, split_records
from gpt_core.documents.source_files import SourceFile, SourceSpec, list_files
from gpt_core.errors import CorpusError
from gpt_core.storage import Storage, is_url
from gpt_core.tokens.midi import DamagedMidiError, read_midi
from gpt_core.tokens.music import events_of, text_of

MAX_ROW_BYTES = 1 << 20
"""A longer row is set aside unread; no model here takes a prompt of this size."""
_TEXT_SUFFIXES = (".txt", ".text")
_MIDI_SUFFIXES = (".mid", ".midi")
_COMPRESSION_SUFFIXES = (".gz", ".zst", ".zstd")
_READ_BYTES = 1 << 20
_REMEDY = "correct the name; a relative one starts from the folder where the command is run"
_TABLE_ROWS = 1024


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row: its bytes, the values of its columns, or why there is neither.

    ``number`` counts lines or rows from 1; ``start`` is where reading can begin again at this row:
    its first byte, decompressed, or the rows before it.
    """

    number: int
    start: int
    content: bytes | dict[str, Any] | None
    fault: str | None = None


def list_prompt_files(paths: tuple[str, ...]) -> list[SourceFile]:
    """Return the files that paths, folders, globs and URLs name, in the order of their names.

    Raises:
        CorpusError: There is no such file, or one of an unknown format.
    """
    for path in paths:
        place = path if is_url(path) else str(Path(path).expanduser())
        if not any(sign in place for sign in "*?[") and not Storage.of(place).exists(place):
            raise CorpusError(path, "no such file", "a file of prompts", _REMEDY)
    return [_known(file) for file in list_files(SourceSpec("prompts", paths))]


def _known(file: SourceFile) -> SourceFile:
    """Return the file with its format."""
    name = file.name.lower()
    if file.compression:
        name = name.removesuffix(next(suffix for suffix in _COMPRESSION_SUFFIXES if name.endswith(suffix)))
    if file.format == "text" and name.endswith(_MIDI_SUFFIXES):
        return replace(file, format="midi")
    if file.format == "text" and not name.endswith(_TEXT_SUFFIXES):
        found = f"the suffix {Path(name).suffix!r}"
        raise CorpusError(file.path, found, ".txt, .jsonl, .parquet, .arrow or .mid", "rename the file")
    return file


def read_rows(file: SourceFile, columns: tuple[str, ...], start: int = 0, number: int = 1) -> Iterator[RawRow]:
    """Yield the rows of a file from the row ``number``, which begins at ``start``.

    Raises:
        CorpusError: A table without the first of the columns, or with others than these.
    """
    if file.format in {"parquet", "arrow"}:
        return _table_rows(file, columns, number)
    if file.format == "midi":
        return _performance(file, columns[0])
    return _lines(file, start, number)


def _lines(file: SourceFile, start: int, number: int) -> Iterator[RawRow]:
    with ByteStream(file, 0 if file.compression else start) as stream:
        if file.compression:
            _skip(stream, start)
        for part in split_records(stream, b"\n", start, MAX_ROW_BYTES):
            if isinstance(part, Oversize):
                yield RawRow(number, part.start, None, _too_long(part.num_bytes))
                number, start = number + 1, part.start + part.num_bytes + 1
                continue
            start = part.start
            for record in part.records:
                row = record if start else record.removeprefix(BOM_UTF8)
                fault = _too_long(len(row)) if len(row) > MAX_ROW_BYTES else None
                yield RawRow(number, start, None if fault else row, fault)
                number, start = number + 1, start + len(record) + 1
        if stream.damage:
            yield RawRow(number, start, None, stream.damage)


def _performance(file: SourceFile, column: str) -> Iterator[RawRow]:
    """Yield the one row of a MIDI file: its events as text."""
    with ByteStream(file) as stream:
        data = stream.read(MAX_ROW_BYTES + 1)
        fault = stream.damage or (_too_long(len(data)) if len(data) > MAX_ROW_BYTES else None)
    try:
        content = None if fault else {column: text_of(events_of(read_midi(data)))}
    except DamagedMidiError as error:
        content, fault = None, str(error)
    yield RawRow(1, 0, content, fault)


def _skip(stream: ByteStream, num_bytes: int) -> None:
    while num_bytes > 0 and (data := stream.read(min(num_bytes, _READ_BYTES))):
        num_bytes -= len(data)


def _too_long(num_bytes: int) -> str:
    return f"found a row of {num_bytes} bytes; expected at most {MAX_ROW_BYTES}"


def _table_rows(file: SourceFile, columns: tuple[str, ...], number: int) -> Iterator[RawRow]:
    first = 1
    batches = _parquet_batches(file, number) if file.format == "parquet" else _arrow_batches(file)
    try:
        for batch, num_rows in batches:
            if batch is not None and first + num_rows > number:
                _check_columns(file, batch.schema.names, columns)
                values = {name: sound(batch.column(name)) for name in batch.schema.names}
                for row in range(max(number - first, 0), num_rows):
                    yield _table_row(values, row, first + row)
            first += num_rows
    except DAMAGED as error:
        reason = f"found unreadable data ({first_line(error)}); expected a whole {file.format} file"
        yield RawRow(max(first, number), max(first, number) - 1, None, reason)


def _table_row(columns: dict[str, pa.Array], row: int, number: int) -> RawRow:
    try:
        values = {name: _value(column, row) for name, column in columns.items()}
    except UnicodeDecodeError as error:
        return RawRow(number, number - 1, None, f"found {error}; expected valid UTF-8")
    return RawRow(number, number - 1, {name: value for name, value in values.items() if value is not None})


def _value(column: pa.Array, row: int) -> Any:
    value = column[row].as_py()
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _check_columns(file: SourceFile, found: list[str], columns: tuple[str, ...]) -> None:
    if columns[0] not in found:
        told = f"the columns {', '.join(found)[:200]}"
        raise CorpusError(file.path, told, f"a column {columns[0]!r} of texts", "rename the column of prompts")
    if unknown := sorted(set(found) - set(columns)):
        remedy = "leave the column out, or rename it"
        raise CorpusError(file.path, f"the column {unknown[0]!r}", "no others than " + ", ".join(columns), remedy)


def _parquet_batches(file: SourceFile, number: int) -> Iterator[tuple[pa.RecordBatch | None, int]]:
    """Yield batches with their numbers of rows; no batch for a row group that ends before row ``number``."""
    with RawFile(file) as raw:
        parquet = pq.ParquetFile(pa.PythonFile(raw, "r"), pre_buffer=False)
        done = 0
        for group in range(parquet.num_row_groups):
            num_rows = parquet.metadata.row_group(group).num_rows
            done += num_rows
            if done < number:
                yield None, num_rows
                continue
            for batch in parquet.iter_batches(_TABLE_ROWS, row_groups=[group], use_threads=False):
                yield batch, batch.num_rows


def _arrow_batches(file: SourceFile) -> Iterator[tuple[pa.RecordBatch, int]]:
    with ByteStream(file) as stream:
        mapped = file.compression is None and not is_url(file.path)
        source = pa.memory_map(file.path) if mapped else pa.BufferReader(_whole(stream))
        if stream.damage:
            raise pa.ArrowInvalid(stream.damage)
        try:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            yield batch, batch.num_rows


def _whole(stream: ByteStream) -> bytes:
    return b"".join(itertools.takewhile(bool, iter(lambda: stream.read(_READ_BYTES), None)))
