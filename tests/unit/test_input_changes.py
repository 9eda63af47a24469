"""Promises of gpt_core.documents.input_changes: an edit is seen at any byte, of any format, and nothing else is."""

import gzip
import os
import random
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
import zstandard

from gpt_core.documents.document_batch import ReadingOptions
from gpt_core.documents.input_changes import (
    InputFacts,
    edited_since,
    edited_since_made,
    file_digests,
    gather,
    read_times,
    write_times,
)
from gpt_core.documents.piece_witness import PieceFacts
from gpt_core.documents.reader import read_batches
from gpt_core.documents.shard_plan import ShardPlans, plan_shards
from gpt_core.documents.source_files import SourceSpec, list_files

_LINES = b"".join(b'{"text": "line %d"}\n' % number for number in range(400))
_SHARD_BYTES = 1500


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of every format and compression; long ones are cut into several plans."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(_LINES)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(_LINES))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(_LINES)[:-9])  # its end is lost
    (folder / "d.jsonl").write_bytes(b'{"text": "' + b"long " * 2000 + b'"}')  # pieces without a beginning of a line
    (folder / "e.txt").write_bytes(b"part one|part two|" * 300)
    (folder / "f.txt").write_bytes(b"short")
    table = pa.table({"text": [f"row {number}" for number in range(500)], "other": list(range(500))})
    pq.write_table(table, folder / "g.parquet", row_group_size=100, compression="none")
    with pa.ipc.new_file(str(folder / "h.arrow"), table.schema) as writer:
        writer.write_table(table, 100)
    return folder


def planned(folder: Path) -> ShardPlans:
    return plan_shards(list_files(SourceSpec("s", (str(folder),), separator="|")), _SHARD_BYTES)


def facts_of(plans: ShardPlans, indices: range | None = None) -> InputFacts:
    """Read plans as workers do, and gather what they report."""
    rows = []
    for index in indices or range(len(plans)):
        facts: list[PieceFacts] = []
        for _ in read_batches(plans[index], ReadingOptions(max_document_bytes=3000), facts):
            pass
        rows.append({"index": index, "pieces": [[fact.digest, fact.num_lines] for fact in facts]})
    return gather(plans, rows)


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def test_a_digest_is_that_of_the_bytes_of_the_piece_whatever_the_reader_needed(folder: Path) -> None:
    plans = planned(folder)
    facts = facts_of(plans)
    for plan in plans:
        for number, piece in enumerate(plan.pieces, plans.first_piece(plan.index)):
            data = (folder / piece.file.name).read_bytes()[piece.start : piece.end]
            assert facts.digests[number] == xxhash.xxh3_64_intdigest(data), piece
    assert facts.known.all()
    assert facts.num_lines[list(plans.pieces_of(0))].sum() == 400


def test_an_edit_at_any_byte_is_seen_in_its_file_and_no_other(folder: Path) -> None:
    plans = planned(folder)
    facts = facts_of(plans)
    recorded = list(file_digests(plans, facts))
    everything = range(len(plans.files))
    assert edited_since(plans, everything, facts) == []
    assert edited_since_made(plans, everything, recorded) == []
    draw = random.Random(2)
    for _ in range(8):
        for number, file in enumerate(plans.files):
            byte = draw.randrange(file.num_bytes)
            flip(folder / file.name, byte)
            assert edited_since(plans, everything, facts) == [file]
            assert edited_since_made(plans, everything, recorded) == [file]
            assert edited_since(plans, [other for other in everything if other != number], facts) == []
            flip(folder / file.name, byte)


def test_an_edit_of_what_nobody_has_read_yet_is_none(folder: Path) -> None:
    plans = planned(folder)
    first = plans.pieces_of(0)
    facts = facts_of(plans, range(plans.plan_of(first[0]), plans.plan_of(first[1]) + 1))
    flip(folder / "a.jsonl", plans.piece(first[2]).start)
    assert edited_since(plans, [0], facts) == []
    flip(folder / "a.jsonl", plans.piece(first[2]).start - 1)
    assert edited_since(plans, [0], facts) == [plans.files[0]]


def test_times_tell_which_files_were_touched_also_where_the_time_of_modification_was_set_back(folder: Path) -> None:
    before = planned(folder)
    path = folder / "e.txt"
    stat = path.stat()
    time.sleep(0.02)
    flip(path, 0)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    touched = before.files.changed_ns != planned(folder).files.changed_ns
    assert [file.name for file, was in zip(before.files, touched, strict=True) if was] == ["e.txt"]
    assert planned(folder).fingerprint == before.fingerprint


def test_times_are_kept_and_damaged_ones_are_none(tmp_path: Path) -> None:
    path, times = str(tmp_path / "times"), np.array([1, 2**62, 0])
    assert read_times(path, 3) is None
    write_times(path, times)
    found = read_times(path, 3)
    assert found is not None
    assert found.tolist() == times.tolist()
    assert read_times(path, 4) is None
    flip(tmp_path / "times", 5)
    assert read_times(path, 3) is None
