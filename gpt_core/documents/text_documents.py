"""Documents of text and JSON-lines files, plain or compressed, whole or a range of bytes."""

from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import replace

import orjson

from gpt_core.documents.byte_stream import ByteStream
from gpt_core.documents.document_batch import DocumentBatch, ReadingOptions, Reject
from gpt_core.documents.piece_witness import PieceWitness
from gpt_core.documents.records import Block, Oversize, first_record, split_records
from gpt_core.documents.shard_plan import Piece
from gpt_core.documents.source_files import SourceFile

_NEWLINE = b"\n"


def read_whole_text(piece: Piece, reading: ReadingOptions, witness: PieceWitness) -> Iterator[DocumentBatch]:
    """Yield one batch: the file as its document, or as a reject."""
    file, limit = piece.file, reading.max_document_bytes
    batch = DocumentBatch()
    witness.num_records += 1
    if file.compression is None and file.num_bytes > limit:
        batch.reject(file.name, None, 0, too_long(file.num_bytes, limit))
        yield batch
        return
    with ByteStream(file, seen=witness.saw) as stream:
        data = stream.read(limit + 1 if file.compression else file.num_bytes + 1)
        if not stream.damage and len(data) <= limit:
            data += stream.read(1)  # meets damage that lies behind the last byte
        if stream.damage:
            batch.reject(file.name, None, len(data), stream.damage)
        elif len(data) > limit:
            batch.reject(file.name, None, 0, too_long(None, limit))
        else:
            text = data.removeprefix(BOM_UTF8)
            _add_text(batch, file, text, len(data) - len(text))
    yield batch


def read_separated_texts(piece: Piece, reading: ReadingOptions, witness: PieceWitness) -> Iterator[DocumentBatch]:
    """Yield the texts between the separators of a file, those that start in the piece."""
    assert piece.file.separator
    separator = piece.file.separator.encode("utf-8")
    for part in _parts(piece, separator, reading, witness):
        if isinstance(part, Reject):
            witness.num_records += 1
            yield _one_reject(part)
        else:
            witness.num_records += sum(map(bool, part.records))
            yield _decode_texts(part, piece.file, separator, reading)


def read_json_lines(piece: Piece, reading: ReadingOptions, witness: PieceWitness) -> Iterator[DocumentBatch]:
    """Yield the texts of a file's JSON lines, those lines that start in the piece; lines count from its first."""
    line, limit = 1, reading.max_document_bytes
    for part in _parts(piece, _NEWLINE, reading, witness):
        if isinstance(part, Reject):
            witness.num_records += 1
            yield _one_reject(replace(part, line=line))
        else:
            witness.num_records += sum(1 for record in part.records if record.strip() or len(record) > limit)
            yield _parse_lines(part, piece.file, line, limit)
        line += len(part.records) if isinstance(part, Block) else 1
    witness.num_lines = line - 1


def too_long(num_bytes: int | None, limit: int) -> str:
    """Return the reason for rejecting a record above the limit."""
    return f"found {'more' if num_bytes is None else f'{num_bytes} bytes'}; expected at most {limit} bytes"


def _parts(piece: Piece, delimiter: bytes, reading: ReadingOptions, witness: PieceWitness) -> Iterator[Block | Reject]:
    """Yield the piece's records as blocks, and a reject for each record that could not be held."""
    file, limit = piece.file, reading.max_document_bytes
    start = first_record(file, delimiter, piece.start, piece.end)
    if start is None:
        return
    with ByteStream(file, start, witness.saw) as stream:
        for part in split_records(stream, delimiter, start, limit):
            if piece.end is not None and part.start >= piece.end:
                return
            if isinstance(part, Oversize):
                start = part.start + part.num_bytes + len(delimiter)
                yield Reject(file.name, None, part.start, too_long(part.num_bytes, limit))
            else:
                start = part.end
                yield _without_mark(_starting_before(piece.end, part, delimiter))
        if stream.damage:
            yield Reject(file.name, None, start, stream.damage)


def _starting_before(end: int | None, block: Block, delimiter: bytes) -> Block:
    """Return the block without the records that start at ``end`` or after."""
    if end is None or block.end <= end:
        return block
    start = block.start
    for index, record in enumerate(block.records):
        if start >= end:
            return Block(block.start, start, block.records[:index])
        start += len(record) + len(delimiter)
    return block


def _without_mark(block: Block) -> Block:
    """Return the block without the mark that some editors begin a UTF-8 file with."""
    if block.start > 0 or not block.records or not block.records[0].startswith(BOM_UTF8):
        return block
    return Block(len(BOM_UTF8), block.end, [block.records[0].removeprefix(BOM_UTF8), *block.records[1:]])


def _one_reject(reject: Reject) -> DocumentBatch:
    return DocumentBatch(rejects=[reject])


def _decode_texts(block: Block, file: SourceFile, separator: bytes, reading: ReadingOptions) -> DocumentBatch:
    batch, start = DocumentBatch(), block.start
    for record in block.records:
        if len(record) > reading.max_document_bytes:
            batch.reject(file.name, None, start, too_long(len(record), reading.max_document_bytes))
        elif record:
            _add_text(batch, file, record, start)
        start += len(record) + len(separator)
    return batch


def _add_text(batch: DocumentBatch, file: SourceFile, data: bytes, start: int) -> None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        batch.reject(file.name, None, start, invalid_utf8(error))
        return
    if not text:
        batch.reject(file.name, None, start, "found an empty text; expected at least one character")
        return
    batch.add(text, file.name, start, start + len(data))
    batch.num_bytes += len(data)


def _parse_lines(block: Block, file: SourceFile, line: int, limit: int) -> DocumentBatch:
    """Return the documents of consecutive lines; the path that decides the reading speed."""
    batch = DocumentBatch()
    texts, starts, ends = batch.texts, batch.starts, batch.ends
    loads, name, start = orjson.loads, file.text_field, block.start
    for index, record in enumerate(block.records):
        end = start + len(record)
        try:
            text = loads(record)[name] if len(record) <= limit else None
        except (ValueError, KeyError, TypeError):
            text = None
        if type(text) is str and text:
            texts.append(text)
            starts.append(start)
            ends.append(end)
        elif reason := _fault(record, name, limit):
            batch.reject(file.name, line + index, start, reason)
        start = end + 1
    batch.files = [file.name] * len(texts)
    batch.num_bytes = sum(map(len, block.records))
    return batch


def _fault(record: bytes, name: str, limit: int) -> str | None:
    """Return why a JSON line is no document, or None for a blank line."""
    if len(record) > limit:
        return too_long(len(record), limit)
    if not record.strip():
        return None
    try:
        value = orjson.loads(record)
    except ValueError as error:
        return _broken_json(record, error)
    return _unfit_value(value, name)


def _unfit_value(value: object, name: str) -> str:
    expected = f"expected an object with a text in {name!r}"
    if not isinstance(value, dict):
        return f"found a JSON {_json_type(value)}; {expected}"
    if name not in value:
        fields = ", ".join(sorted(value)[:8]) or "none"
        return f"found no field {name!r} (fields: {fields[:200]}); {expected}"
    if isinstance(value[name], str):
        return f"found an empty text in {name!r}; expected at least one character"
    return f"found a {_json_type(value[name])} in {name!r}; {expected}"


def _broken_json(record: bytes, error: ValueError) -> str:
    try:
        record.decode("utf-8")
    except UnicodeDecodeError as decode_error:
        return invalid_utf8(decode_error)
    return f"found broken JSON ({error}); expected one JSON object on the line"


def invalid_utf8(error: UnicodeDecodeError) -> str:
    """Return the reason for rejecting a record whose bytes are not UTF-8."""
    return (
        f"found byte {error.object[error.start]:#04x} at offset {error.start} of the record ({error.reason}); "
        "expected valid UTF-8"
    )


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
