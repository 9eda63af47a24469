"""Documents out of source files, and what could not be one, with the place and the reason.

The tokenizing worker reads whole batches. Every record of the input becomes either a document or a reject;
blank lines and empty pieces between two separators are not records. Positions are bytes of the decompressed
file, or rows of a parquet or Arrow file.
"""

from collections.abc import Iterator

from gpt_core.documents.document_batch import Document, DocumentBatch, ReadingOptions, Reject
from gpt_core.documents.midi_documents import read_midi_file
from gpt_core.documents.piece_witness import PieceFacts, PieceWitness
from gpt_core.documents.shard_plan import Piece, ShardPlan
from gpt_core.documents.table_documents import read_arrow, read_parquet
from gpt_core.documents.text_documents import read_json_lines, read_separated_texts, read_whole_text

__all__ = ["Document", "DocumentBatch", "ReadingOptions", "Reject", "read_batches", "read_documents"]


def read_documents(plan: ShardPlan, reading: ReadingOptions) -> Iterator[Document | Reject]:
    """Yield every document and reject of a plan; within a batch, documents first.

    Raises:
        CorpusError: A file has gone or changed its size since it was planned.
    """
    for batch in read_batches(plan, reading):
        yield from batch.documents()
        yield from batch.rejects


def read_batches(
    plan: ShardPlan, reading: ReadingOptions, facts: list[PieceFacts] | None = None
) -> Iterator[DocumentBatch]:
    """Yield the documents of a plan in order, in batches of about ``reading.batch_bytes``.

    Memory: a few batches, or a few times the largest document allowed.

    Args:
        plan: What to read.
        reading: How.
        facts: Takes the facts of each piece, once it has been read.

    Raises:
        CorpusError: A file has gone or changed its size since it was planned.
    """
    batch = DocumentBatch()
    for piece in plan.pieces:
        witness = PieceWitness(piece)
        for part in _read_piece(piece, reading, witness):
            batch.extend(part)
            if batch.num_bytes >= reading.batch_bytes:
                yield batch
                batch = DocumentBatch()
        if facts is not None:
            facts.append(witness.facts())
    if batch.texts or batch.rejects:
        yield batch


def _read_piece(piece: Piece, reading: ReadingOptions, witness: PieceWitness) -> Iterator[DocumentBatch]:
    match piece.file.format:
        case "jsonl":
            return read_json_lines(piece, reading, witness)
        case "parquet":
            return read_parquet(piece, reading, witness)
        case "arrow":
            return read_arrow(piece, reading, witness)
        case "midi":
            return read_midi_file(piece, reading, witness)
        case "text" if piece.file.separator:
            return read_separated_texts(piece, reading, witness)
        case _:
            return read_whole_text(piece, reading, witness)
