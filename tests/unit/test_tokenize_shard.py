"""Promises of gpt_core.corpus.tokenize_shard: one plan, the same files, whatever happens."""

import dataclasses
import errno
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gpt_core.corpus import tokenize_shard
from gpt_core.corpus.shards import ShardReader, ShardWriter
from gpt_core.corpus.tokenize_shard import ShardTokenizer, TokenizeOptions, held_out_documents
from gpt_core.documents.document_batch import DocumentBatch
from gpt_core.documents.reader import read_batches
from gpt_core.documents.shard_plan import ShardPlan, plan_shards
from gpt_core.documents.source_files import SourceSpec, list_files
from gpt_core.errors import ResourceError, SettingsError
from gpt_core.tokens.tokenizer import Ids, has_gigatoken, load_tokenizer

TEXTS = [f"Document {number} says <|endoftext|> and {number * 7919}.\n" for number in range(200)]


@pytest.fixture
def plan(tmp_path: Path) -> ShardPlan:
    """One shard of a JSON-lines file with two bad lines, and a text file."""
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[50:50] = ["broken", '{"text": 5}']
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "in" / "b.txt").write_text("A text.")
    (only,) = plan_shards(list_files(SourceSpec("s", (str(tmp_path / "in"),))), 1 << 20)
    return only


def options(folder: Path, **changes: Any) -> TokenizeOptions:
    return dataclasses.replace(TokenizeOptions(str(folder), backend="tiktoken", validation_fraction=0.25), **changes)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def documents_of(path: Path) -> list[dict[str, Any]]:
    return pa.ipc.open_file(path).read_all().to_pylist()


def test_a_shard_holds_every_document_once(tmp_path: Path, plan: ShardPlan) -> None:
    row = ShardTokenizer(options(tmp_path / "out"))(plan)
    tokenizer = load_tokenizer("gpt2")
    splits = {split: documents_of(tmp_path / "out" / split / "00000000.arrow") for split in ("train", "validation")}

    texts = []
    for document in [*splits["train"], *splits["validation"]]:
        assert document["tokens"][-1] == tokenizer.end_of_text
        texts.append(tokenizer.decode(document["tokens"][:-1]))
    assert sorted(texts) == sorted([*TEXTS, "A text."])
    assert 25 <= len(splits["validation"]) <= 80
    assert [document["start"] for document in splits["train"][:-1]] == sorted(
        document["start"] for document in splits["train"][:-1]
    )
    counts = (row["num_documents_in"], row["num_documents_kept"], row["num_rejected"])
    assert counts == (203, 201, 2)


def test_a_document_points_at_its_bytes(tmp_path: Path, plan: ShardPlan) -> None:
    ShardTokenizer(options(tmp_path / "out"))(plan)
    tokenizer = load_tokenizer("gpt2")

    for document in documents_of(tmp_path / "out" / "validation" / "00000000.arrow"):
        source = (tmp_path / "in" / document["file"]).read_bytes()[document["start"] : document["end"]]
        text = json.loads(source)["text"] if document["file"] == "a.jsonl" else source.decode()
        assert [*tokenizer.encode(text), tokenizer.end_of_text] == document["tokens"]


def test_the_row_describes_the_files(tmp_path: Path, plan: ShardPlan) -> None:
    row = ShardTokenizer(options(tmp_path / "out"))(plan)

    assert json.loads(json.dumps(row)) == json.loads(json.dumps(row, allow_nan=False))
    assert [file["split"] for file in row["files"]] == ["train", "validation", "rejects"]
    assert (row["index"], row["source"], row["backend"], row["warnings"]) == (0, "s", "tiktoken", [])
    for file in row["files"]:
        path = tmp_path / "out" / file["path"]
        assert path.stat().st_size == file["stats"]["num_bytes"]
    assert row["num_tokens"] == sum(
        ShardReader(tmp_path / "out" / file["path"]).num_tokens for file in row["files"][:2]
    )


def test_rejects_are_json_lines_with_their_place(tmp_path: Path, plan: ShardPlan) -> None:
    ShardTokenizer(options(tmp_path / "out"))(plan)
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects/00000000.jsonl").read_text().splitlines()]

    assert [(reject["file"], reject["line"]) for reject in rejects] == [("a.jsonl", 51), ("a.jsonl", 52)]
    assert rejects[1]["start"] == rejects[0]["start"] + len("broken\n")


def test_doing_a_plan_again_writes_the_same_bytes(tmp_path: Path, plan: ShardPlan) -> None:
    worker = ShardTokenizer(options(tmp_path / "out"))
    row, files = worker(plan), files_of(tmp_path / "out")

    assert worker(plan) == row
    assert files_of(tmp_path / "out") == files
    assert len(files) == 3


@pytest.mark.skipif(not has_gigatoken(), reason="pip install gigatoken to compare the backends")
@pytest.mark.parametrize("backend", ["gigatoken", "auto"])
def test_every_backend_writes_the_same_bytes(tmp_path: Path, plan: ShardPlan, backend: str) -> None:
    reference = ShardTokenizer(options(tmp_path / "a"))(plan)
    row = ShardTokenizer(options(tmp_path / "b", backend=backend))(plan)

    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert row["files"] == reference["files"]
    assert row["backend"] == "gigatoken"


class WrongTokenizer:
    """The reference, but for an id of each text that holds a marker; or it fails there."""

    backend = "wrong"

    def __init__(self, marker: str, error: Exception | None = None) -> None:
        self._reference: Any = load_tokenizer("gpt2")
        self._marker, self._error = marker, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reference, name)

    def encode_many(self, texts: Sequence[str]) -> tuple[Ids, np.ndarray]:
        tokens, offsets = self._reference.encode_many(texts)
        for index, text in enumerate(texts):
            if self._marker in text:
                if self._error:
                    raise self._error
                tokens[offsets[index]] += 1
        return tokens, offsets


@pytest.mark.parametrize("error", [None, ValueError("no such luck")])
def test_a_wrong_backend_is_caught_and_the_shard_done_again_with_the_reference(
    tmp_path: Path, plan: ShardPlan, error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_shard, "CHECKED_SHARE", 0.5)
    expected = ShardTokenizer(options(tmp_path / "a"))(plan)
    wrong: Any = WrongTokenizer("3", error)
    row = ShardTokenizer(options(tmp_path / "b", backend="auto"), wrong)(plan)

    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert row["files"] == expected["files"]
    assert row["backend"] == "tiktoken"
    (warning,) = row["warnings"]
    assert warning.startswith("shard 0: wrong ")
    assert "no such luck" in warning if error else "disagree on a.jsonl, " in warning


def test_a_plan_of_rejects_only_writes_no_shard(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("1\n2\n")
    (plan,) = plan_shards(list_files(SourceSpec("s", (str(tmp_path / "in.jsonl"),))), 100)
    row = ShardTokenizer(options(tmp_path / "out"))(plan)

    assert list(files_of(tmp_path / "out")) == ["rejects/00000000.jsonl"]
    assert (row["num_documents_in"], row["num_rejected"], row["num_tokens"]) == (2, 2, 0)
    assert [file["split"] for file in row["files"]] == ["rejects"]


def test_documents_that_are_lost_on_the_way_are_missed_in_the_count(
    tmp_path: Path, plan: ShardPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losing(*arguments: Any) -> Iterator[DocumentBatch]:
        for batch in read_batches(*arguments):
            yield batch.select(list(range(0, len(batch.texts), 2)))

    monkeypatch.setattr(tokenize_shard, "read_batches", losing)
    row = ShardTokenizer(options(tmp_path / "out"))(plan)

    counts = (row["num_documents_in"], row["num_documents_kept"], row["num_rejected"])
    assert counts == (203, 101, 0)


def test_shards_do_not_depend_on_where_the_input_lies(tmp_path: Path, plan: ShardPlan) -> None:
    (tmp_path / "moved").mkdir()
    (tmp_path / "in").rename(tmp_path / "moved" / "elsewhere")
    (moved,) = plan_shards(list_files(SourceSpec("s", (str(tmp_path / "moved" / "elsewhere"),))), 1 << 20)
    ShardTokenizer(options(tmp_path / "b"))(moved)
    (tmp_path / "moved" / "elsewhere").rename(tmp_path / "in")
    ShardTokenizer(options(tmp_path / "a"))(plan)

    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_equal_texts_fall_on_one_side_and_shares_are_kept() -> None:
    texts = [f"text {number}" for number in range(20_000)]
    chosen = held_out_documents(texts, 0.1, seed=3)

    assert 0.09 < chosen.mean() < 0.11
    assert held_out_documents(texts[::-1], 0.1, seed=3).tolist() == chosen[::-1].tolist()
    assert held_out_documents(texts, 0.1, seed=4).tolist() != chosen.tolist()
    assert not held_out_documents(texts, 0.0, seed=3).any()
    # A larger share keeps what a smaller one held out.
    assert held_out_documents(texts, 0.2, seed=3)[chosen].all()


def test_another_vocabulary_than_the_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="put the same vocabulary file on every machine"):
        ShardTokenizer(options(tmp_path, tokenizer_digest="0" * 64))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_no_file(
    tmp_path: Path, plan: ShardPlan, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_self: ShardWriter) -> None:
        raise OSError(number, "No space left on device")

    monkeypatch.setattr(ShardWriter, "_publish", fail)
    with pytest.raises(ResourceError, match=r"out: found No space left .* bytes free\); expected about .* for shard 0"):
        ShardTokenizer(options(tmp_path / "out"))(plan)

    assert files_of(tmp_path / "out") == {}


def test_other_disk_errors_stay_what_they_are(tmp_path: Path, plan: ShardPlan) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")

    with pytest.raises(NotADirectoryError):
        ShardTokenizer(options(tmp_path / "out"))(plan)


HUGE_INPUT = """
import pathlib, sys
from gpt_core.documents.shard_plan import plan_shards
from gpt_core.documents.source_files import SourceSpec, list_files
from gpt_core.corpus.tokenize_shard import ShardTokenizer, TokenizeOptions
plans = plan_shards(list_files(SourceSpec("s", (sys.argv[1],))), 64 << 20)
worker = ShardTokenizer(TokenizeOptions(sys.argv[2]))
rows = [worker(plan) for plan in plans]
print(sum(row["num_documents_kept"] for row in rows), sum(row["num_rejected"] for row in rows))
status = pathlib.Path("/proc/self/status").read_text()  # getrusage would count the parent's memory too
print(int(status.partition("VmHWM:")[2].split()[0]) >> 10)
"""


def test_a_line_of_200_megabytes_stays_within_the_memory_bound(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with path.open("w") as file:
        file.write('{"text": "first"}\n{"text": "')
        for _ in range(200):
            file.write("x" * 1_000_000)
        file.write('"}\n{"text": "last"}\n')
    arguments = [sys.executable, "-c", HUGE_INPUT, str(path), str(tmp_path / "out")]
    output = subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    counts, peak_megabytes = output.stdout.splitlines()

    assert counts == "2 1"
    assert int(peak_megabytes) <= 600
