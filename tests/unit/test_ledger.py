"""The ledger: what is done stays known through any crash, and every number comes back as it went in."""

import json
from pathlib import Path

import pytest

from gpt_core.corpus.manifest_tables import ShardEntry, shard_tables
from gpt_core.corpus.shards import ShardStats
from gpt_core.errors import StaleOutputError
from gpt_core.ledger import FOLDER, Ledger


@pytest.fixture(params=["path", "url"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output folder, as a path or as a URL that only fsspec reaches."""
    return str(tmp_path / "out") if request.param == "path" else f"file://{tmp_path}/out"


def _opened(folder: str) -> Ledger:
    ledger = Ledger(folder)
    ledger.open({"size": 1})
    return ledger


def _row(index: int) -> dict[str, int]:
    return {"index": index, "num_tokens": 100 + index}


def test_rows_that_workers_committed_are_known_after_a_crash_of_the_driver(folder: str) -> None:
    ledger = _opened(folder)
    ledger.done(6)
    for index in (4, 0, 2):
        ledger.commit(index, _row(index))
    ledger.record([_row(4)])
    again = _opened(folder)
    assert again.done(6).tolist() == [True, False, True, False, True, False]
    assert sorted(row["index"] for row in again.rows()) == [0, 2, 4]
    assert _opened(folder).done(6).tolist() == [True, False, True, False, True, False]


def test_some_rows_are_found_wherever_they_lie_before_the_journal_is_mended(folder: str, tmp_path: Path) -> None:
    ledger = _opened(folder)
    ledger.done(6)
    for index in (4, 0, 2):
        ledger.commit(index, _row(index))
    ledger.record([_row(4)])
    if "://" not in folder:
        with (tmp_path / "out" / FOLDER / "journal").open("ab") as journal:
            journal.write(b'0000000002 {"index": 2, "num_')
    again = _opened(folder)
    assert sorted(row["index"] for row in again.rows_of({1, 2, 4, 5})) == [2, 4]
    assert list(again.rows_of(set())) == []


def test_a_row_recorded_twice_is_one_row(folder: str) -> None:
    ledger = _opened(folder)
    ledger.record([_row(1), _row(3)])
    ledger.record([_row(1)])
    assert [row["index"] for row in ledger.rows()] == [1, 3]


def test_a_half_written_journal_line_is_cut_and_its_shard_counted_by_its_own_row(tmp_path: Path) -> None:
    ledger = _opened(str(tmp_path))
    ledger.record([_row(0)])
    ledger.commit(1, _row(1))
    journal = tmp_path / FOLDER / "journal"
    journal.write_bytes(journal.read_bytes() + b'0000000001 {"index": 1, "num_')
    again = _opened(str(tmp_path))
    assert again.done(3).tolist() == [True, True, False]
    assert list(again.rows()) == [_row(0), _row(1)]


def test_tries_are_counted_over_workers_and_forgotten_by_a_new_run(folder: str) -> None:
    _opened(folder)
    assert [Ledger(folder).begin_try(7) for _ in range(3)] == [1, 2, 3]
    Ledger(folder).commit(7, _row(7))
    assert Ledger(folder).begin_try(7) == 1
    Ledger(folder).forget_tries()
    assert Ledger(folder).begin_try(7) == 1


def test_a_job_begun_with_other_settings_is_refused(folder: str) -> None:
    _opened(folder)
    with pytest.raises(StaleOutputError, match="size: found an unfinished job begun with 1; expected the 2"):
        Ledger(folder).open({"size": 2})


def test_a_removed_ledger_leaves_nothing(folder: str, tmp_path: Path) -> None:
    ledger = _opened(folder)
    ledger.commit(0, _row(0))
    ledger.begin_try(1)
    ledger.remove()
    ledger.remove()
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_digests_of_64_bits_reach_the_manifest_exactly(folder: str) -> None:
    digests = [2**64 - 1, 2**63 + 1, 2**53 + 1, 0]
    ledger = _opened(folder)
    stats = {"num_documents": 4, "num_tokens": 4, "num_bytes": 9, "xxh3_128": "f" * 32, "batch_digests": digests}
    stats |= {"batch_end_bytes": [1, 2, 3, 4], "batch_documents": [1] * 4, "batch_tokens": [1] * 4}
    ledger.commit(0, json.loads(json.dumps({"index": 0, "stats": stats})))
    again = _opened(folder)
    again.done(1)
    entries = [ShardEntry("train", "s", 0, "train/0", ShardStats(**row["stats"])) for row in again.rows()]
    assert shard_tables(entries)[1].column("digest").to_pylist() == digests


@pytest.mark.parametrize("num_rows", [0, 1])
def test_a_half_written_line_of_any_length_is_cut(tmp_path: Path, num_rows: int) -> None:
    ledger = _opened(str(tmp_path))
    ledger.record(map(_row, range(num_rows)))
    journal = tmp_path / FOLDER / "journal"
    with journal.open("ab") as file:
        file.write(b'0000000001 {"pieces": "' + b"x" * (3 << 20))
    again = _opened(str(tmp_path))
    assert again.done(3).tolist() == [number < num_rows for number in range(3)]
    again.record([_row(2)])
    assert list(again.rows()) == [*map(_row, range(num_rows)), _row(2)]
