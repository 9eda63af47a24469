"""Documents of MIDI files: a file is one, its performance events as text."""

from collections.abc import Iterator

from gpt_core.documents.byte_stream import ByteStream
from gpt_core.documents.document_batch import DocumentBatch, ReadingOptions
from gpt_core.documents.piece_witness import PieceWitness
from gpt_core.documents.shard_plan import Piece
from gpt_core.documents.text_documents import too_long
from gpt_core.tokens.midi import DamagedMidiError, read_midi
from gpt_core.tokens.music import events_of, text_of


def read_midi_file(piece: Piece, reading: ReadingOptions, witness: PieceWitness) -> Iterator[DocumentBatch]:
    """Yield one batch: the file as its document, or as a reject."""
    file, limit = piece.file, reading.max_document_bytes
    batch = DocumentBatch()
    witness.num_records += 1
    with ByteStream(file, seen=witness.saw) as stream:
        data = stream.read(limit + 1)
        if not stream.damage and len(data) <= limit:
            data += stream.read(1)  # meets damage that lies behind the last byte
        if stream.damage or len(data) > limit:
            batch.reject(file.name, None, 0, stream.damage or too_long(None, limit))
        else:
            _add(batch, file.name, data)
    yield batch


def _add(batch: DocumentBatch, name: str, data: bytes) -> None:
    try:
        text = text_of(events_of(read_midi(data)))
    except DamagedMidiError as error:
        batch.reject(name, None, 0, str(error))
        return
    batch.add(text, name, 0, len(data))
    batch.num_bytes += len(text)
