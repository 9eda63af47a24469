"""Documents and rejects as the readers hand them on: one by one, or as columns."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from: ``start`` and ``end`` are its record's, a JSON line's for example."""

    text: str
    file: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that is no document.

    ``line`` is that of a JSON-lines file, from 1, counted from the first line that starts in the piece that was read;
    None in other formats.
    """

    file: str
    line: int | None
    start: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """How documents are read.

    Args:
        max_document_bytes: Records above this (a whole JSON line, the UTF-8 of a text) are rejected unread.
        batch_bytes: Text of a batch; a batch ends after the block or file that reaches it.
    """

    max_document_bytes: int = 8 << 20
    batch_bytes: int = 2 << 20


@dataclass(slots=True)
class DocumentBatch:
    """Documents as columns of equal length, and the rejects met among them."""

    texts: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    num_bytes: int = 0
    """Bytes of the records of the documents."""

    def add(self, text: str, file: str, start: int, end: int) -> None:
        """Append one document."""
        self.texts.append(text)
        self.files.append(file)
        self.starts.append(start)
        self.ends.append(end)

    def reject(self, file: str, line: int | None, start: int, reason: str) -> None:
        """Set one record aside."""
        self.rejects.append(Reject(file, line, start, reason))

    def extend(self, other: "DocumentBatch") -> None:
        """Append all of another batch."""
        self.texts += other.texts
        self.files += other.files
        self.starts += other.starts
        self.ends += other.ends
        self.rejects += other.rejects
        self.num_bytes += other.num_bytes

    def select(self, rows: list[int]) -> "DocumentBatch":
        """Return the documents of these rows, without rejects or a count of bytes."""
        columns = (self.texts, self.files, self.starts, self.ends)
        return DocumentBatch(*([column[row] for row in rows] for column in columns))  # pyright: ignore[reportArgumentType]

    def documents(self) -> Iterator[Document]:
        """Yield the documents one by one."""
        return map(Document, self.texts, self.files, self.starts, self.ends)
