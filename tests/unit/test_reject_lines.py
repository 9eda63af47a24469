"""Promises of gpt_core.corpus.reject_lines: lines count from the beginning of the file, whoever read its middle."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import xxhash

from gpt_core.corpus.reject_lines import number_lines
from gpt_core.corpus.tokenize_shard import ShardTokenizer, TokenizeOptions
from gpt_core.documents.input_changes import gather
from gpt_core.documents.shard_plan import ShardPlans, plan_shards
from gpt_core.documents.source_files import SourceSpec, list_files
from gpt_core.errors import CorpusError

_BAD = [b"broken", b'{"text": 5}', b'{"text": ""}', b"\xff", b'{"text": "' + b"x" * 900 + b'"}']


@pytest.fixture
def lines() -> list[bytes]:
    draw = random.Random(4)
    good = [json.dumps({"text": f"line {number} " * draw.randrange(1, 4)}).encode() for number in range(600)]
    return [draw.choice([*_BAD, b"", b" "]) if draw.random() < 0.2 else line for line in good]


def tokenized(folder: Path, lines: list[bytes], shard_bytes: int) -> tuple[ShardPlans, list[dict[str, Any]]]:
    (folder / "in").mkdir()
    (folder / "in" / "a.jsonl").write_bytes(b"broken\n" * 3)
    (folder / "in" / "b.jsonl").write_bytes(b"\n".join(lines))
    plans = plan_shards(list_files(SourceSpec("web", (str(folder / "in"),))), shard_bytes)
    worker = ShardTokenizer(TokenizeOptions(str(folder / "out"), "bytes", "tiktoken", max_document_bytes=300))
    return plans, [worker(plan) for plan in plans]


def rejects_of(folder: Path) -> list[dict[str, Any]]:
    paths = sorted((folder / "out" / "rejects").iterdir())
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.mark.parametrize("shard_bytes", [100, 1000, 7000, 1 << 20])
def test_every_reject_names_its_line_in_the_file(tmp_path: Path, lines: list[bytes], shard_bytes: int) -> None:
    plans, rows = tokenized(tmp_path, lines, shard_bytes)
    renewed = number_lines(str(tmp_path / "out"), plans, gather(plans, rows), rows)

    rejects = [reject for reject in rejects_of(tmp_path) if reject["file"] == "b.jsonl"]
    bad = [number for number, line in enumerate(lines, start=1) if line in _BAD]
    assert [reject["line"] for reject in rejects] == bad
    for reject in rejects:
        assert list(reject) == ["source", "file", "line", "start", "reason"]
        assert reject["source"] == "web"
        assert reject["start"] == sum(len(line) + 1 for line in lines[: reject["line"] - 1])
    for path, stats in renewed.items():
        data = (tmp_path / "out" / path).read_bytes()
        assert (stats.num_bytes, stats.xxh3_128) == (len(data), xxhash.xxh3_128_hexdigest(data))
        assert stats.num_documents == data.count(b"\n")


def test_until_then_no_line_is_named_wrongly_and_afterwards_a_second_pass_changes_nothing(
    tmp_path: Path, lines: list[bytes]
) -> None:
    plans, rows = tokenized(tmp_path, lines, 1000)
    middle = [reject for reject in rejects_of(tmp_path) if "line_of_piece" in reject]
    assert len(middle) > 50
    assert {reject["line"] for reject in middle} == {None}
    facts = gather(plans, rows)
    renewed = number_lines(str(tmp_path / "out"), plans, facts, rows)
    done = rejects_of(tmp_path)
    assert number_lines(str(tmp_path / "out"), plans, facts, rows) == renewed
    assert rejects_of(tmp_path) == done


def test_damaged_rejects_are_refused(tmp_path: Path, lines: list[bytes]) -> None:
    plans, rows = tokenized(tmp_path, lines, 1000)
    path = next(path for path in (tmp_path / "out" / "rejects").iterdir() if b"line_of_piece" in path.read_bytes())
    path.write_bytes(path.read_bytes().replace(b"found", b"sound", 1))
    with pytest.raises(CorpusError, match="rejects"):
        number_lines(str(tmp_path / "out"), plans, gather(plans, rows), rows)
