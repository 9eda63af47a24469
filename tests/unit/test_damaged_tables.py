"""Promises of the readers of tables: damage and odd columns become rejects, and cost no more than what they hit."""

import gzip
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from gpt_core.documents.arrow_batches import ArrowBatches
from gpt_core.documents.reader import Document, ReadingOptions, Reject, read_documents
from gpt_core.documents.shard_plan import plan_shards
from gpt_core.documents.source_files import SourceSpec, list_files

TEXTS = [f"document {number} " * 5 for number in range(2000)]


def read(path: Path | str, shard_bytes: int = 1 << 30, text_field: str = "text") -> tuple[list[Document], list[Reject]]:
    files = list_files(SourceSpec("s", (str(path),), text_field=text_field))
    found = [one for plan in plan_shards(files, shard_bytes) for one in read_documents(plan, ReadingOptions())]
    return [one for one in found if isinstance(one, Document)], [one for one in found if isinstance(one, Reject)]


def write(path: Path, table: pa.Table, *, stream: bool = False, rows: int = 500) -> Path:
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def with_bytes(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    return path


def test_an_offset_out_of_its_batch_is_one_reject_and_the_other_batches_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", pa.table({"text": TEXTS}))
    offsets = pa.array(TEXTS[500:1000]).buffers()[1].to_pybytes()  # of the second batch
    documents, rejects = read(with_bytes(path, offsets, offsets[:400] + b"\x7f\x7f\x7f\x7f" + offsets[404:]))

    assert [document.text for document in documents] == TEXTS[:500] + TEXTS[1000:]
    assert [document.start for document in documents[500:]] == list(range(1000, 2000))
    assert [(reject.start, "expected a whole arrow file" in reject.reason) for reject in rejects] == [(500, True)]


def test_an_index_out_of_its_dictionary_is_a_reject(tmp_path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1, 0] * 16, pa.int8()), ["a", "b"])
    path = write(tmp_path / "a.arrow", pa.table({"text": column}))
    documents, rejects = read(with_bytes(path, bytes([0, 1, 1, 0] * 16), bytes([0, 1, 1, 77] * 16)))

    assert documents == []
    assert len(rejects) == 1


FLIPS = """
import random, sys
from pathlib import Path
from tests.unit.test_damaged_tables import read
path, seed = Path(sys.argv[1]), int(sys.argv[2])
whole, draw = path.read_bytes(), random.Random(seed)
for _ in range(60):
    data = bytearray(whole)
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    read(path)
print("alive")
"""


@pytest.mark.parametrize("kind", ["plain", "lz4", "dictionary", "stream", "parquet"])
def test_no_flipped_bit_ends_the_process_or_the_plan(tmp_path: Path, kind: str) -> None:
    table = pa.table({"text": TEXTS, "other": range(2000)})
    path = tmp_path / "a.arrow"
    if kind == "parquet":
        path = tmp_path / "a.parquet"
        pq.write_table(table, path, row_group_size=500)
    elif kind == "lz4":
        pyarrow.feather.write_feather(table, str(path), chunksize=500)
    else:
        if kind == "dictionary":
            table = table.set_column(0, "text", table["text"].combine_chunks().dictionary_encode())
        write(path, table, stream=kind == "stream")
    command = [sys.executable, "-c", FLIPS, str(path), str(random.Random(kind).randrange(1000))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n"


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_two_columns_of_the_name_set_every_row_aside(tmp_path: Path, kind: str) -> None:
    table = pa.table([pa.array(["a", "b"]), pa.array(["c", "d"])], names=["text", "text"])
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        write(path, table)
    documents, rejects = read(path)

    assert documents == []
    assert [reject.start for reject in rejects] == [0, 1]
    assert {reject.reason for reject in rejects} == {"found 2 columns 'text'; expected one"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_table_that_was_cut_off_keeps_its_whole_batches(tmp_path: Path, stream: bool) -> None:
    path = write(tmp_path / "a.arrow", pa.table({"text": TEXTS}), stream=stream, rows=200)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    for shard_bytes in (1 << 30, 10_000):
        documents, rejects = read(path, shard_bytes)
        assert [document.text for document in documents] == TEXTS[: len(documents)]
        assert len(documents) in {1200, 1400}
        assert [reject.start for reject in rejects] == [len(documents)]


@pytest.mark.parametrize("shard_bytes", [1 << 30, 50_000, 20_000])
def test_a_damaged_batch_of_a_stream_costs_no_other_wherever_the_stream_is_cut(
    tmp_path: Path, shard_bytes: int
) -> None:
    texts = [random.Random(number).randbytes(100).hex() for number in range(800)]
    table, path = pa.table({"text": texts}), tmp_path / "a.arrow"
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=100)
    data, magic = path.read_bytes(), b"\x28\xb5\x2f\xfd"  # of a zstd frame: one of offsets, one of texts in a batch
    frames = data.split(magic)
    assert len(frames) == 1 + 2 * 8
    path.write_bytes(b"".join([magic.join(frames[:4]), b"\0\0\0\0", magic.join(frames[4:])]))  # of the second's texts
    documents, rejects = read(path, shard_bytes)

    kept = [*range(100), *range(200, 800)]
    assert [(document.text, document.start) for document in documents] == [(texts[row], row) for row in kept]
    assert [reject.start for reject in rejects] == [100]


@pytest.mark.parametrize("stream", [True, False])
def test_a_piece_decodes_the_column_of_its_own_batches_only(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    table = pa.table({"other": range(2000), "text": TEXTS})
    path = tmp_path / "a.arrow"
    if stream:
        write(path, table, stream=True, rows=100)
    else:
        pyarrow.feather.write_feather(table, str(path), chunksize=100)
    asked: list[int] = []
    column = ArrowBatches.column

    def spy(batches: ArrowBatches, index: int) -> pa.Array:
        asked.append(index)
        found = column(batches, index)
        assert found.type == pa.string()
        return found

    monkeypatch.setattr(ArrowBatches, "column", spy)
    files = list_files(SourceSpec("s", (str(path),)))
    plans = plan_shards(files, -(-files[0].num_bytes // 4))
    assert len(plans) == 4
    found = [one for one in read_documents(plans[2], ReadingOptions()) if isinstance(one, Document)]
    assert asked == [10, 11, 12, 13, 14]
    assert [(document.text, document.start) for document in found] == [(TEXTS[row], row) for row in range(1000, 1500)]


def test_a_piece_of_a_file_at_a_url_fetches_its_own_part(tmp_path: Path) -> None:
    texts = [random.Random(number).randbytes(2000).hex() for number in range(500)]
    write(tmp_path / "a.arrow", pa.table({"text": texts}), rows=50)
    documents, rejects = read(f"file://{tmp_path}/a.arrow", 300_000)

    assert [document.text for document in documents] == texts
    assert [document.start for document in documents] == list(range(500))
    assert rejects == []


def test_views_of_bytes_are_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", pa.table({"text": pa.array([b"a", b"\xff", b"b" * 20], pa.binary_view())}))
    documents, rejects = read(path)

    assert [document.text for document in documents] == ["a", "b" * 20]
    assert [reject.start for reject in rejects] == [1]


def test_parquet_inside_gzip_is_a_reject_that_says_what_is_expected(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    packed = tmp_path / "b.parquet.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    documents, [reject] = read(packed)

    assert documents == []
    assert reject.reason == (
        "found gzip around a parquet file; expected the plain file, whose columns may be compressed"
    )


def test_headers_of_many_columns_are_read_whole(tmp_path: Path) -> None:
    columns = {f"column {number}": [number] * 30 for number in range(300)}
    write(tmp_path / "a.arrow", pa.table({**columns, "text": TEXTS[:30]}), rows=10)
    documents, rejects = read(tmp_path / "a.arrow", 20_000)

    assert [(document.text, document.start) for document in documents] == [(TEXTS[row], row) for row in range(30)]
    assert rejects == []
