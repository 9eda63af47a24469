"""The held-out ends of documents, for corpora of few long texts: a book's last tenth, not every tenth book."""

from gpt_core.documents.document_batch import DocumentBatch


def cut_tails(batch: DocumentBatch, share: float) -> tuple[DocumentBatch, DocumentBatch]:
    """Return the documents without their ends, and the ends as documents of their own.

    An end is the last ``share`` of a text's UTF-8 bytes, shortened to begin at a character. A text too short to
    have an end stays whole. Rejects and the count of bytes stay with the first batch. Where a text's record is
    longer than its text (a JSON line, a table's row), both parts name the whole record.
    """
    heads, tails = DocumentBatch(rejects=batch.rejects, num_bytes=batch.num_bytes), DocumentBatch()
    for document in batch.documents():
        data = document.text.encode("utf-8")
        cut = _character_at(data, len(data) - int(len(data) * share))
        plain = document.end - document.start == len(data)
        middle = document.start + cut if plain else document.end
        if cut in {0, len(data)}:
            heads.add(document.text, document.file, document.start, document.end)
            continue
        heads.add(data[:cut].decode("utf-8"), document.file, document.start, middle)
        tails.add(data[cut:].decode("utf-8"), document.file, middle if plain else document.start, document.end)
    return heads, tails


def _character_at(data: bytes, position: int) -> int:
    """Return the first position from ``position`` on where a character begins, or the end."""
    while position < len(data) and data[position] & 0xC0 == 0x80:
        position += 1
    return position
