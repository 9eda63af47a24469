"""Promises of the readers: every record becomes a document or a reject, wherever the files are cut."""

import errno
import gzip
import json
import random
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.documents import records
from gpt_core.documents.piece_witness import PieceFacts
from gpt_core.documents.reader import Document, ReadingOptions, Reject, read_batches, read_documents
from gpt_core.documents.shard_plan import Piece, ShardPlan
from gpt_core.documents.source_files import SourceFile, SourceSpec, list_files
from gpt_core.errors import CorpusError, RunFailedError
from gpt_core.storage import Storage

TEXTS = ["one", "zwei ünd", "trois\nlignes", "四" * 40, "🧿", " "]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}


def planned(
    path: Path, cuts: tuple[int, ...] = (), text_field: str = "text", separator: str | None = None
) -> ShardPlan:
    """Return a plan over one file, cut at the given bytes."""
    (file,) = list_files(SourceSpec("s", (str(path),), text_field=text_field, separator=separator))
    bounds = [0, *sorted(cuts), None]
    pieces = (Piece(file, start or 0, end) for start, end in pairwise(bounds))
    return ShardPlan(0, "s", tuple(pieces))


def read(plan: ShardPlan, limit: int = 1 << 20) -> tuple[list[Document], list[Reject]]:
    found = list(read_documents(plan, ReadingOptions(max_document_bytes=limit)))
    return [one for one in found if isinstance(one, Document)], [one for one in found if isinstance(one, Reject)]


def json_lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"id": 1, "text": text}).encode() + b"\n" for text in texts)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_json_lines_give_their_texts_and_byte_ranges(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](json_lines(TEXTS)))
    documents, rejects = read(planned(path))

    assert [document.text for document in documents] == TEXTS
    assert rejects == []
    for document in documents:
        assert json.loads(json_lines(TEXTS)[document.start : document.end])["text"] == document.text


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.txt", "a.py", "README"])
def test_a_text_file_is_one_document(tmp_path: Path, suffix: str, name: str) -> None:
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESS[suffix]("naïve\n".encode()))

    assert read(planned(path)) == ([Document("naïve\n", path.name, 0, 7)], [])


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_separator_cuts_texts_and_empty_pieces_are_no_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"<>one<><>two\n<>"))
    documents, rejects = read(planned(path, separator="<>"))

    assert documents == [Document("one", path.name, 2, 5), Document("two\n", path.name, 9, 13)]
    assert rejects == []


@given(data=st.data(), separator=st.sampled_from(["\n", "\n\n", "ab", "aba", "aa", "<sep>"]))
@settings(deadline=None, max_examples=200)
def test_cutting_a_file_anywhere_changes_no_document(
    data: st.DataObject, separator: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = data.draw(st.text("ab\n", max_size=60) | st.text("a", max_size=60)).encode()
    content += data.draw(st.sampled_from([b"", separator.encode()]))
    cuts = data.draw(st.lists(st.integers(1, max(1, len(content))), max_size=5, unique=True))
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    path.write_bytes(content)
    window, records._WINDOW_BYTES = records._WINDOW_BYTES, data.draw(st.integers(1, 20))
    try:
        documents, rejects = read(planned(path, tuple(cut for cut in cuts if cut < len(content)), separator=separator))
    finally:
        records._WINDOW_BYTES = window

    expected, start = [], 0  # the oracle: Python's own split of the whole file
    for piece in content.decode().split(separator):
        if piece:
            expected.append(Document(piece, "a.txt", start, start + len(piece)))
        start += len(piece) + len(separator)
    assert documents == expected
    assert rejects == []


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100])
def test_borders_of_reads_change_no_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(records, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(TEXTS * 5))

    assert [document.text for document in read(planned(path, (50, 51, 200)))[0]] == TEXTS * 5


def test_bad_lines_are_set_aside_with_line_byte_and_reason(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "cut off',
        b'{"text": "\xff\xfe"}',
        b'{"body": "x", "id": 3}',
        b'{"text": 7}',
        b'{"text": null}',
        b'{"text": ""}',
        b"",
        b'["text"]',
        b'{"text": "\\ud800"}',
        b'{"text": "' + b"x" * 200 + b'"}',
        b'{"text": "good too"}\r',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    documents, rejects = read(planned(path), limit=100)

    assert [document.text for document in documents] == ["good", "good too"]
    assert [reject.line for reject in rejects] == [2, 3, 4, 5, 6, 7, 9, 10, 11]
    assert [reject.start for reject in rejects] == [
        sum(len(line) + 1 for line in lines[: reject.line - 1]) for reject in rejects if reject.line
    ]
    starts = ["broken JSON", "byte 0xff at offset 10", "no field 'text' (fields: body, id)", "a number", "a null"]
    starts += ["an empty text", "a JSON array", "broken JSON", "212 bytes; expected at most 100 bytes"]
    for reject, start in zip(rejects, starts, strict=True):
        assert reject.reason.startswith(f"found {start}")


def test_lines_of_a_piece_are_counted_from_its_first(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"bad\n" * 10)
    rejects = read(planned(path, (20,)))[1]

    assert [reject.line for reject in rejects] == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
    assert [reject.start for reject in rejects] == list(range(0, 40, 4))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_line_of_any_length_is_set_aside_in_bounded_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    huge = b'{"text": "' + b"x" * (9 << 20) + b'"}'
    path.write_bytes(COMPRESS[suffix](json_lines(["a"]) + huge + b"\n" + json_lines(["b"]) + huge))
    documents, rejects = read(planned(path), limit=1000)

    assert [document.text for document in documents] == ["a", "b"]
    assert [(reject.line, reject.start) for reject in rejects] == [(2, 23), (4, 23 + len(huge) + 1 + 23)]
    assert all(f"found {len(huge)} bytes" in reject.reason for reject in rejects)


@pytest.mark.parametrize(("content", "reason"), [(b"", "an empty text"), (b"ab\xe9", "byte 0xe9 at offset 2")])
def test_bad_text_files_are_set_aside(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    documents, rejects = read(planned(path))

    assert documents == []
    assert rejects[0].reason.startswith(f"found {reason}")


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_text_file_above_the_limit_is_set_aside(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"x" * 101))

    assert "expected at most 100 bytes" in read(planned(path), limit=100)[1][0].reason
    assert read(planned(path), limit=101)[1] == []


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flip", "not at all", "garbage behind"])
def test_a_damaged_stream_keeps_what_comes_before(tmp_path: Path, suffix: str, damage: str) -> None:
    texts = [f"{number} {random.Random(number).randbytes(300).hex()}" for number in range(20_000)]
    data = bytearray(COMPRESS[suffix](json_lines(texts)))
    if damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "flip":
        data[len(data) // 2] ^= 0x55
    elif damage == "not at all":
        data = bytearray(b"plain text")
    else:
        data += b"garbage"
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(data)
    documents, rejects = read(planned(path))

    # What any decoder can still get out; damage inside gzip data may turn into wrong bytes before it is noticed.
    assert len(rejects) >= 1
    assert "damaged" in rejects[-1].reason
    kept = {"cut": 9000, "flip": 8000, "not at all": 0, "garbage behind": 20_000}[damage]
    assert [document.text for document in documents[:kept]] == texts[:kept]
    assert len(documents) >= kept
    assert rejects[-1].line is not None
    assert rejects[-1].line >= kept + 1


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_streams_of_several_members_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](json_lines(["a"])) + COMPRESS[suffix](json_lines(["b"])))

    assert [document.text for document in read(planned(path))[0]] == ["a", "b"]


def test_an_empty_compressed_file_holds_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"")

    assert read(planned(path)) == ([], [])


@pytest.mark.parametrize("cuts", [(), (100, 101, 800)])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow-stream"])
def test_tables_give_rows(tmp_path: Path, kind: str, cuts: tuple[int, ...]) -> None:
    path = tmp_path / f"a.{kind.removesuffix('-stream')}"
    texts = [f"text {number}" for number in range(100)]
    write_table(path, kind, pa.table({"id": range(100), "text": texts}))
    documents, rejects = read(planned(path, cuts))

    assert documents == [Document(text, path.name, row, row + 1) for row, text in enumerate(texts)]
    assert rejects == []


def write_table(path: Path, kind: str, table: pa.Table) -> None:
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=13)
        return
    new = pa.ipc.new_stream if kind == "arrow-stream" else pa.ipc.new_file
    with new(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=13)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_bad_rows_are_set_aside(tmp_path: Path, kind: str) -> None:
    values = pa.array([b"good", None, b"", b"\xff", b"x" * 101], pa.binary()).view(pa.string())
    path = tmp_path / f"a.{kind}"
    write_table(path, kind, pa.table({"text": values}))
    documents, rejects = read(planned(path), limit=100)

    assert [document.text for document in documents] == ["good"]
    assert [reject.start for reject in rejects] == [1, 2, 3, 4]
    starts = ["null", "an empty text", "byte 0xff at offset 0", "101 bytes"]
    for reject, start in zip(rejects, starts, strict=True):
        assert reject.reason.startswith(f"found {start}")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_missing_or_numeric_column_sets_every_row_aside(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    write_table(path, kind, pa.table({"id": range(30), "body": ["x"] * 30}))

    missing = read(planned(path))[1]
    assert [reject.start for reject in missing] == list(range(30))
    assert "no column 'text' (columns: id, body)" in missing[0].reason
    assert "found int64 in 'id'" in read(planned(path, text_field="id"))[1][0].reason


def test_dictionary_columns_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, "parquet", pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}))

    assert [document.text for document in read(planned(path))[0]] == ["a", "b", "a"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("content", [b"", b"no table at all, but long enough to have a footer"])
def test_an_unreadable_table_is_one_reject(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content)
    cuts = (10, 20) if content else ()
    documents, rejects = read(planned(path, cuts))

    assert documents == []
    assert len(rejects) == 1
    assert f"expected a whole {kind} file" in rejects[0].reason


def test_a_damaged_row_group_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [random.Random(number).randbytes(50).hex() for number in range(300)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, write_page_checksum=True)
    offset = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 30] = bytes(30)
    path.write_bytes(content)
    documents, rejects = read(planned(path))

    assert {document.start for document in documents} >= {*range(100), *range(200, 300)}
    assert [reject.start for reject in rejects] == [100]


def test_batches_are_bounded_and_keep_the_order(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text("x" * 100 + str(number))
    files = list_files(SourceSpec("s", (str(tmp_path),)))
    plan = ShardPlan(0, "s", tuple(Piece(file) for file in files))
    batches = list(read_batches(plan, ReadingOptions(batch_bytes=300)))

    assert [len(batch.texts) for batch in batches] == [3, 3, 3]
    assert [name for batch in batches for name in batch.files] == [f"{number}.txt" for number in range(9)]


@pytest.mark.parametrize("change", ["removed", "grown"])
def test_a_file_that_changed_after_planning_stops_the_shard(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["a"]))
    plan = planned(path)
    path.unlink() if change == "removed" else path.write_bytes(json_lines(["a", "b"]))

    with pytest.raises(CorpusError, match=r"a\.jsonl: found (No such file|46 bytes)"):
        read(plan)


def test_a_file_knows_whether_it_can_be_cut() -> None:
    assert SourceFile("s", "/", "a.jsonl", 1, "jsonl").divisible
    assert not SourceFile("s", "/", "a.jsonl.gz", 1, "jsonl", "gzip").divisible
    assert not SourceFile("s", "/", "a.txt", 1, "text").divisible
    assert SourceFile("s", "/", "a.txt", 1, "text", separator="\n\n").divisible


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    content = MARK + json_lines(["first", "second"])
    path.write_bytes(COMPRESS[suffix](content))
    documents, rejects = read(planned(path, () if suffix else (1, 2)))

    assert [document.text for document in documents] == ["first", "second"]
    assert [content[document.start : document.end] for document in documents] == content[3:].splitlines()
    assert rejects == []


@pytest.mark.parametrize("separator", [None, "<>"])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path, separator: str | None) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(MARK + b"text")

    assert read(planned(path, separator=separator)) == ([Document("text", "a.txt", 3, 7)], [])


def test_a_store_that_fails_to_open_a_file_is_no_fault_of_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["a"]))
    plan = planned(path)

    def fail(_self: Storage, _path: str) -> None:
        raise OSError(errno.EIO, "Timeout was reached")

    monkeypatch.setattr(Storage, "open_read", fail)
    with pytest.raises(RunFailedError, match=r"a\.jsonl: found .*Timeout was reached"):
        read(plan)


def test_records_are_counted_as_they_are_met(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\nbroken\n \t\n' + b'"' + b"x" * 3000 + b'"\n{"text": "b"}')
    (tmp_path / "b.txt").write_bytes(b"<>one<><>two<>\xff")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(json_lines(["x", "y"]))[:-3])
    write_table(tmp_path / "d.parquet", "parquet", pa.table({"text": ["a", None, "b"]}))
    write_table(tmp_path / "e.arrow", "arrow", pa.table({"body": ["a"] * 20}))
    files = list_files(SourceSpec("s", (str(tmp_path),), separator="<>"))
    facts: list[PieceFacts] = []
    plan = ShardPlan(0, "s", tuple(Piece(file) for file in files))
    batches = list(read_batches(plan, ReadingOptions(max_document_bytes=2000), facts))

    assert [fact.num_records for fact in facts] == [4, 3, 3, 3, 20]
    assert sum(len(batch.texts) + len(batch.rejects) for batch in batches) == 33
