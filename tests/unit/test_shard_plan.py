"""Promises of gpt_core.documents.shard_plan: every byte in one shard, the same on every machine."""

import hashlib
import json
import pickle
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.documents.file_columns import FileColumns, FileKind, SourceFile
from gpt_core.documents.shard_plan import Piece, plan_shards


def lines(name: str, num_bytes: int, source: str = "s") -> SourceFile:
    return SourceFile(source, "/in", name, num_bytes, "jsonl")


def packed(name: str, num_bytes: int, source: str = "s") -> SourceFile:
    return SourceFile(source, "/in", name, num_bytes, "jsonl", "gzip")


def test_small_files_share_a_shard_in_order() -> None:
    files = [packed(name, 40) for name in "abcde"]
    plans = plan_shards(files, 100)

    assert [[piece.file.name for piece in plan.pieces] for plan in plans] == [["a", "b"], ["c", "d"], ["e"]]
    assert plans[0].pieces[0] == Piece(files[0], 0, None)


def test_big_files_are_cut_into_equal_ranges() -> None:
    file = lines("a", 1001)
    plans = plan_shards([file], 300)

    assert [plan.pieces for plan in plans] == [
        (Piece(file, 0, 250),),
        (Piece(file, 250, 500),),
        (Piece(file, 500, 750),),
        (Piece(file, 750, None),),
    ]


def test_what_cannot_be_cut_is_a_shard_of_its_own() -> None:
    plans = plan_shards([packed("a", 10), packed("b", 500), packed("c", 10)], 100)

    assert [plan.num_bytes for plan in plans] == [10, 500, 10]


def test_a_shard_holds_one_source() -> None:
    plans = plan_shards([packed("a", 1, "x"), packed("b", 1, "x"), packed("a", 1, "y")], 100)

    assert [(plan.index, plan.source, len(plan.pieces)) for plan in plans] == [(0, "x", 2), (1, "y", 1)]


SIZES = st.lists(st.tuples(st.integers(0, 500), st.booleans(), st.sampled_from("xyz")), max_size=20)


@given(SIZES, st.integers(1, 200))
def test_every_byte_is_in_one_plan_in_order(shape: list[tuple[int, bool, str]], shard_bytes: int) -> None:
    files = [(lines if cut else packed)(f"{number}", size, source) for number, (size, cut, source) in enumerate(shape)]
    plans = plan_shards(files, shard_bytes)

    covered: dict[str, int] = {}
    for plan in plans:
        assert len({piece.file.source for piece in plan.pieces} | {plan.source}) == 1
        assert plan.num_bytes <= shard_bytes or (len(plan.pieces) == 1 and not plan.pieces[0].file.divisible)
        for piece in plan.pieces:
            assert piece.start == covered.get(piece.file.name, 0)
            covered[piece.file.name] = piece.file.num_bytes if piece.end is None else piece.end
    assert covered == {file.name: file.num_bytes for file in files}
    assert plans.num_bytes == sum(file.num_bytes for file in files)


def test_plans_are_a_sequence() -> None:
    plans = plan_shards([lines("a", 1000)], 100)

    assert len(plans) == 10
    assert plans[-1] == plans[9]
    assert plans[2:4] == [plans[2], plans[3]]
    assert [plan.index for plan in pickle.loads(pickle.dumps(plans))] == list(range(10))
    with pytest.raises(IndexError, match="plan 10 of 10"):
        plans[10]


def test_no_files_are_no_plans() -> None:
    assert list(plan_shards([], 100)) == []


def test_the_fingerprint_covers_names_sizes_and_cutting_but_no_place() -> None:
    def fingerprint(shard_bytes: int = 100, **changes: object) -> str:
        values = {"source": "s", "root": "/in", "name": "a", "num_bytes": 10, "format": "text", **changes}
        return plan_shards([SourceFile(**values)], shard_bytes).fingerprint

    assert fingerprint(root="s3://elsewhere") == fingerprint()
    others = [{"name": "b"}, {"num_bytes": 11}, {"source": "t"}, {"separator": "\n"}, {"shard_bytes": 99}]
    assert len({fingerprint(), *(fingerprint(**change) for change in others)}) == 6


def test_the_fingerprint_is_the_documented_one() -> None:
    """An independent spelling of the recipe: a line of JSON for the size, one for each file."""
    files = [
        SourceFile("s", "/in", 'ä "quoted"\\', 2**40, "jsonl", "gzip", "body"),
        SourceFile("t", "/in", "b.txt", 0, "text", separator="\n\n"),
    ]
    lines = [
        ["shard_bytes", 100],
        ["s", 'ä "quoted"\\', 2**40, "jsonl", "gzip", "body", None],
        ["t", "b.txt", 0, "text", None, "text", "\n\n"],
    ]
    text = "\n".join(json.dumps(line, separators=(",", ":")) for line in lines)
    assert plan_shards(files, 100).fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_the_pieces_of_a_file_are_found_without_looking_at_the_others() -> None:
    plans = plan_shards([lines(str(number), 1000 * (number % 3)) for number in range(30)], 1000)
    for number in range(30):
        assert {plans.piece(piece).file.name for piece in plans.pieces_of(number)} == {str(number)}
        assert sum(plans.file_of(piece) == number for piece in range(plans.num_pieces)) == len(plans.pieces_of(number))
    large = plan_shards([lines("a", 64_000_000_000)], 64_000)
    tracemalloc.start()
    large.pieces_of(0)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10_000


def test_a_million_files_are_cheap_to_send_and_to_hold() -> None:
    names = [f"segment-{number % 1000:04}/part-{number:07}.jsonl.zst" for number in range(1_000_000)]
    kind = FileKind("web", "s3://bucket/crawl/2026", "jsonl", "zstd")
    sizes, times = np.full(len(names), 100_000_000), np.arange(len(names))
    files = FileColumns([kind], np.zeros(len(names), np.int32), names, sizes, times)
    sent = pickle.dumps(plan_shards(files, 64 << 20), 5)
    assert len(sent) < 100_000_000
    tracemalloc.start()
    plans = pickle.loads(sent)
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held_bytes < 100_000_000
    assert len(plans) == 1_000_000
    expected = SourceFile("web", "s3://bucket/crawl/2026", names[777_777], 100_000_000, "jsonl", "zstd")
    assert plans[777_777].pieces == (Piece(expected),)
    assert plans.files[777_777].changed_ns == 777_777


def test_a_million_plans_are_cheap() -> None:
    files = [lines(str(number), 64_000_000_000) for number in range(1000)]
    tracemalloc.start()
    began = time.perf_counter()
    plans = plan_shards(files, 64_000_000)
    seconds = time.perf_counter() - began
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(plans) == 1_000_000
    assert plans[999_999].pieces[0].start == 63_936_000_000
    assert seconds < 3
    assert peak_bytes < 100 << 20
