"""Shards are plain Arrow files: pandas, polars, duckdb and Hugging Face datasets read them as they are."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gpt_core.corpus.shards import ShardWriter

DOCUMENTS = [[5, 6, 50256], [50256], [7, 50256]]
ROWS = [("a.txt", 0, 4), ("a.txt", 4, 4), ("b/c.txt", 10, 12)]


@pytest.fixture
def shard(tmp_path: Path) -> str:
    with ShardWriter(tmp_path / "00000000.arrow", np.uint16) as writer:
        tokens = np.array([token for document in DOCUMENTS for token in document], np.uint16)
        files, starts, ends = zip(*ROWS, strict=True)
        writer.append(tokens, np.array([0, 3, 4, 6]), files, starts, ends)
        writer.close()
    return str(tmp_path / "00000000.arrow")


def test_pandas_reads_a_shard(shard: str) -> None:
    pandas = pytest.importorskip("pandas", reason="install the dev dependencies")
    frame = pandas.read_feather(shard)
    assert [tokens.tolist() for tokens in frame["tokens"]] == DOCUMENTS
    assert list(frame[["file", "start", "end"]].itertuples(index=False, name=None)) == ROWS


def test_polars_reads_a_shard(shard: str) -> None:
    polars = pytest.importorskip("polars", reason="install the dev dependencies")
    frame = polars.read_ipc(shard)
    assert frame["tokens"].to_list() == DOCUMENTS
    assert frame.select("file", "start", "end").rows() == ROWS


def test_duckdb_queries_a_shard(shard: str) -> None:
    duckdb = pytest.importorskip("duckdb", reason="install the dev dependencies")
    with pa.memory_map(shard) as source, duckdb.connect() as connection:
        connection.register("shard", pa.ipc.open_file(source).read_all())
        rows = connection.sql('select tokens, file, start, "end" from shard').fetchall()
    assert rows == [(tokens, *row) for tokens, row in zip(DOCUMENTS, ROWS, strict=True)]


def test_hugging_face_datasets_loads_a_shard(shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="install the dev dependencies")
    loaded = datasets.load_dataset("arrow", data_files=shard, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["tokens"][:] == DOCUMENTS
    assert list(zip(loaded["file"], loaded["start"], loaded["end"], strict=True)) == ROWS
