"""Whether the input files of a corpus are still those it was made from, also where an edit kept their sizes.

Names and sizes are compared by the plans' fingerprint. Contents are compared by the digests that workers took while
they read, but only of files whose time of change is another than it was: a time alone proves nothing, copies have
new ones. Times enter no digest.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xxhash

from gpt_core.digests import xxh3_64_int
from gpt_core.documents.file_columns import SourceFile
from gpt_core.documents.piece_witness import PieceWitness
from gpt_core.documents.shard_plan import ShardPlans
from gpt_core.ledger import Row
from gpt_core.storage import Storage

_THREADS = 8


@dataclass(frozen=True, slots=True)
class InputFacts:
    """What workers reported of the pieces they read, by the pieces' numbers.

    Args:
        read: bool [pieces], whether the piece was read.
        known: bool [pieces], whether there is a digest of it.
        digests: uint64 [pieces].
        num_lines: int64 [pieces], lines that start in it; 0 where none were counted.
    """

    read: np.ndarray
    known: np.ndarray
    digests: np.ndarray
    num_lines: np.ndarray


def gather(plans: ShardPlans, rows: Iterable[Row]) -> InputFacts:
    """Return the facts in the rows of committed shards."""
    count = plans.num_pieces
    read, known = np.zeros(count, bool), np.zeros(count, bool)
    digests, num_lines = np.zeros(count, np.uint64), np.zeros(count, np.int64)
    for row in rows:
        for number, (digest, lines) in enumerate(row["pieces"], plans.first_piece(row["index"])):
            read[number] = True
            known[number] = digest is not None
            digests[number] = digest or 0
            num_lines[number] = lines or 0
    return InputFacts(read, known, digests, num_lines)


def file_digests(plans: ShardPlans, facts: InputFacts) -> Iterator[int | None]:
    """Yield one digest a file, in the order of the plans; None where one of its pieces has none."""
    for number in range(len(plans.files)):
        pieces = plans.pieces_of(number)
        part = slice(pieces.start, pieces.stop)
        yield _combined(facts.digests[part]) if facts.known[part].all() else None


def edited_since(plans: ShardPlans, suspects: Iterable[int], facts: InputFacts) -> list[SourceFile]:
    """Return those of the files with these numbers of which a piece was read that now has other bytes."""

    def edited(number: int) -> bool:
        pieces = (piece for piece in plans.pieces_of(number) if facts.read[piece])
        return any(not facts.known[piece] or _digest_now(plans, piece) != facts.digests[piece] for piece in pieces)

    return _files_that(plans, suspects, edited)


def edited_since_made(plans: ShardPlans, suspects: Iterable[int], recorded: list[int | None]) -> list[SourceFile]:
    """Return those of the files with these numbers that are not what a corpus recorded, one digest a file."""

    def edited(number: int) -> bool:
        digests = [_digest_now(plans, piece) for piece in plans.pieces_of(number)]
        return None in digests or _combined(np.array(digests, np.uint64)) != recorded[number]

    return _files_that(plans, suspects, edited)


def write_times(path: str, times: np.ndarray) -> None:
    """Write times of change, one a file of the plans, atomically."""
    data = times.astype("<i8").tobytes()
    content = data + xxhash.xxh3_128_digest(data)
    Storage.of(path).write_atomically(path, lambda file: file.write(content))


def read_times(path: str, count: int) -> np.ndarray | None:
    """Return what ``write_times`` wrote; None if it is not there, damaged, or of another number of files."""
    storage = Storage.of(path)
    if not storage.exists(path):
        return None
    with storage.open_read(path) as file:
        content = file.read()
    data, seal = content[:-16], content[-16:]
    if len(data) != 8 * count or xxhash.xxh3_128_digest(data) != seal:
        return None
    return np.frombuffer(data, "<i8")


def _files_that(plans: ShardPlans, numbers: Iterable[int], fulfil: Callable[[int], bool]) -> list[SourceFile]:
    numbers = list(numbers)
    with ThreadPoolExecutor(_THREADS) as pool:
        return [plans.files[number] for number, found in zip(numbers, pool.map(fulfil, numbers), strict=True) if found]


def _digest_now(plans: ShardPlans, piece: int) -> int | None:
    return PieceWitness(plans.piece(piece)).facts().digest


def _combined(digests: np.ndarray) -> int:
    return int(digests[0]) if len(digests) == 1 else xxh3_64_int(digests.astype("<u8").tobytes())
