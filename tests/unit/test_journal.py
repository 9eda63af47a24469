"""The journal: lines survive kills, readers never see half a record, and points count once."""

import itertools
import math
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.recording.journal import Journal, Point, Series, Tail, points_of, read_all, stride
from gpt_core.errors import ResourceError


def test_records_come_back_in_order(tmp_path):
    journal = Journal(tmp_path / "a" / "journal.jsonl")
    for number in range(5):
        journal.append({"do": "tags", "number": number})
    assert [record["number"] for record in read_all(journal.path)] == [0, 1, 2, 3, 4]


def test_torn_line_of_a_killed_writer_is_skipped_and_the_next_record_is_whole(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).append({"step": 1})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "metr')
    Journal(path).append({"step": 3})
    tail = Tail(path)
    assert [record["step"] for record in tail.read()] == [1, 3]
    assert tail.num_damaged == 1


def test_tail_leaves_an_unfinished_line_until_its_writer_is_done(tmp_path):
    path = tmp_path / "journal.jsonl"
    tail = Tail(path)
    assert tail.read() == []  # not even the file is there
    with path.open("ab", buffering=0) as file:
        file.write(b'{"step": 1}\n{"ste')
        assert tail.read() == [{"step": 1}]
        assert tail.read() == []
        file.write(b'p": 2}\n')
        assert tail.read() == [{"step": 2}]
    assert tail.offset == path.stat().st_size


def test_tail_reads_a_line_longer_than_its_block(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"text": "x" * 3_000_000})
    journal.append({"text": "y"})
    assert [len(record["text"]) for record in read_all(journal.path)] == [3_000_000, 1]


def test_tail_stops_at_the_given_end(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"step": 1})
    end = journal.path.stat().st_size
    journal.append({"step": 2})
    tail = Tail(journal.path)
    assert tail.read(end) == [{"step": 1}]
    assert tail.read(end) == []
    assert tail.read() == [{"step": 2}]


def test_write_that_fails_halfway_does_not_spoil_the_next_record(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.jsonl")
    real_write = os.write

    def full_disk(file, data):
        real_write(file, data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full_disk)
    full = r"journal.jsonl: found No space left on device; expected a place with room to write; free space and run"
    with pytest.raises(ResourceError, match=full):
        journal.append({"step": 1})
    monkeypatch.setattr(os, "write", real_write)
    journal.append({"step": 2})
    assert list(read_all(journal.path)) == [{"step": 2}]


def test_threads_do_not_mix_their_lines(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")

    def write(worker):
        for number in range(200):
            journal.append({"worker": worker, "number": number})

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = list(read_all(journal.path))
    assert len(records) == 800
    for worker in range(4):
        assert [record["number"] for record in records if record["worker"] == worker] == list(range(200))


def test_values_that_are_no_numbers_survive(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append_metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1}, step=3, tokens=7)
    (record,) = read_all(journal.path)
    values = {point.metric: point.value for point in points_of(record)}
    assert math.isnan(values.pop("a"))
    assert values == {"b": math.inf, "c": -math.inf, "d": 0.1, "tokens": 7.0}


@pytest.mark.parametrize("name", ["", "loss%", "a" * 251, "loss\n"])
def test_metric_name_that_mlflow_refuses_is_an_error_at_once(tmp_path, name):
    with pytest.raises(ValueError, match="metric name"):
        Journal(tmp_path / "journal.jsonl").append_metrics({name: 1.0}, step=1)


@pytest.mark.parametrize(
    ("num_points", "expected"),
    [(1, 1), (1999, 1), (2000, 2), (4999, 2), (5000, 5), (9999, 5), (10_000, 10), (20_000, 20), (500_000, 500)],
)
def test_stride_grows_by_ones_twos_and_fives(num_points, expected):
    assert stride(num_points) == expected


def test_two_hundred_thousand_steps_become_a_light_chart_with_both_ends():
    series = Series()
    points = (Point("loss", step, 0, 0.0) for step in range(1, 200_000))
    kept = [taken.step for point in points if (taken := series.take(point))]
    last = series.take_held()
    assert kept[:3] == [1, 2, 3]
    assert last is not None
    assert last.step == 199_999
    assert len(kept) < 10_000
    assert all((after - before) <= max(1, after // 1000) for before, after in itertools.pairwise(kept))


@given(st.lists(st.one_of(st.integers(0, 50), st.integers(0, 2**60)), max_size=200))
def test_the_first_point_of_a_step_counts_and_no_step_is_lost(steps):
    series = Series()
    kept = [taken for number, step in enumerate(steps) if (taken := series.take(Point("loss", step, 0, float(number))))]
    assert [point.step for point in kept] == list(dict.fromkeys(steps))
    assert all(steps.index(point.step) == point.value for point in kept)


@given(st.integers(1, 60), st.integers(0, 59), st.integers(1, 60))
def test_run_that_repeats_steps_after_a_kill_has_the_history_of_a_calm_one(killed_at, back_to, end):
    def history(steps):
        series = Series()
        kept = [taken.step for step in steps if (taken := series.take(Point("loss", step, 0, 0.0)))]
        return kept, series.take_held()

    last = max(killed_at, end)
    calm = history(range(1, last + 1))
    resumed_at = min(back_to, killed_at) + 1
    assert history([*range(1, killed_at + 1), *range(resumed_at, last + 1)]) == calm
