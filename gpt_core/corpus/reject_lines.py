"""The numbers of lines that were set aside, counted from the beginning of a file that several workers shared.

A worker counts from the first line of its piece, and how many there are. When all pieces of a file are read, their
sums give each piece its first line, and the rejects of the pieces are written anew. No byte of input is read again,
and a driver that is killed on the way leaves nothing that a second pass would get wrong.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import orjson
import xxhash

from gpt_core.corpus.rejects import RejectWriter, read_rejects
from gpt_core.corpus.shards import ShardStats
from gpt_core.documents.document_batch import Reject
from gpt_core.documents.input_changes import InputFacts
from gpt_core.documents.shard_plan import ShardPlans
from gpt_core.errors import CorpusError
from gpt_core.ledger import Row
from gpt_core.storage import Storage

_THREADS = 8


def number_lines(folder: str, plans: ShardPlans, facts: InputFacts, rows: Iterable[Row]) -> dict[str, ShardStats]:
    """Give the rejects of pieces from the middle of JSON-lines files their numbers in the file.

    Returns:
        The stats of every file of rejects that was written anew, now or by a driver that died later, by its path.

    Raises:
        CorpusError: A file of rejects is damaged.
    """
    storage = Storage.of(folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        tasks = [
            (path, pool.submit(_number, storage.join(path), digest, lines_before))
            for path, digest, lines_before in _unnumbered(plans, facts, rows)
        ]
        return {path: task.result() for path, task in tasks}


def _unnumbered(plans: ShardPlans, facts: InputFacts, rows: Iterable[Row]) -> Iterator[tuple[str, str, int]]:
    """Yield path, digest as the worker wrote it, and lines before its piece, of rejects with lines of a piece."""
    lines_before = np.cumsum(facts.num_lines) - facts.num_lines
    for row in rows:
        piece = plans.first_piece(row["index"])
        if not plans.in_mid_file(piece) or plans.piece(piece).file.format != "jsonl":
            continue
        first = plans.pieces_of(plans.file_of(piece)).start
        for file in row["files"]:
            if file["split"] == "rejects":
                yield file["path"], file["stats"]["xxh3_128"], int(lines_before[piece] - lines_before[first])


def _number(path: str, digest: str, lines_before: int) -> ShardStats:
    """Write a file of rejects with their lines and return its stats; written again, it stays as it is."""
    found = xxhash.xxh3_128()
    for reject in read_rejects(path):
        as_written = {**reject, "line": None, "line_of_piece": _line_of_piece(reject, lines_before)}
        found.update(orjson.dumps(as_written, option=orjson.OPT_APPEND_NEWLINE))
    if found.hexdigest() != digest:
        raise CorpusError(path, "other bytes than were written", "the rejects of a shard", "delete the output folder")
    with RejectWriter(path) as writer:
        for reject in read_rejects(path):
            line = _line_of_piece(reject, lines_before) + lines_before
            numbered = Reject(reject["file"], line, reject["start"], reject["reason"])
            writer.append(reject["source"], [numbered])
        return writer.close()


def _line_of_piece(reject: dict[str, Any], lines_before: int) -> int:
    return reject["line_of_piece"] if "line_of_piece" in reject else reject["line"] - lines_before
