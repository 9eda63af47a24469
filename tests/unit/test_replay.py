"""The replay against a store in memory that fails before or after it has acted, or acts when it was given up."""

import contextlib
import itertools
import random
import threading
import time
from collections import Counter

import pytest

from cluster.recording import patience
from cluster.recording.acknowledged import Acknowledged
from cluster.recording.journal import Journal
from cluster.recording.record_book import RecordBook
from cluster.recording.replay import Replayer


class Unreliable:
    """A store that counts what it gets; `fails` decides for each call if it fails, and if it acts before or after.

    As in MLflow's database (tests/unit/test_tracking.py), the same point sent again is the same row, while
    another time or value makes a second row of the step.
    """

    name = "the store"

    def __init__(self, fails=lambda call: None):
        self.fails = fails
        self.runs, self.parents, self.statuses = {}, {}, {}
        self.points, self.late = set(), []
        self.refused_steps, self.threads = set(), set()
        self.tags, self.params, self.artifacts, self.refused = {}, {}, Counter(), set()
        self.num_calls = 0
        self._ids = itertools.count()

    def _do(self, call, action=lambda: None):
        self.num_calls += 1
        self.threads.add(threading.current_thread().name)
        outcome = self.fails(call)
        if outcome == "before":
            raise ConnectionError("connection refused")
        if outcome == "late":
            self.late.append(action)
            raise TimeoutError("no answer")
        result = action()
        if outcome == "after":
            raise TimeoutError("no answer")
        return result

    @property
    def rows(self):
        """Rows of each (run, metric, step)."""
        return Counter(point[:3] for point in self.points)

    def land_late(self):
        """Act on all requests that were given up."""
        while self.late:
            self.late.pop()()

    def connect(self):
        self._do("connect")

    def is_refusal(self, error):
        return isinstance(error, ValueError)

    def is_active(self, run_id):
        return self._do("is_active", lambda: run_id in self.runs)

    def find_runs(self, key):
        return self._do("find_runs", lambda: [run_id for run_id, one in self.runs.items() if one == key])

    def create_run(self, key, opened, parent_id):
        def act():
            run_id = f"run{next(self._ids)}"
            self.runs[run_id], self.parents[run_id] = key, parent_id
            return run_id

        return self._do("create_run", act)

    def delete_run(self, run_id):
        self._do("delete_run", lambda: self.runs.pop(run_id))

    def set_status(self, run_id, status, end_time):
        self._do("set_status", lambda: self.statuses.__setitem__(run_id, status))

    def recorded_steps(self, run_id, metric):
        steps = lambda: {point[2] for point in self.points if point[:2] == (run_id, metric)}  # noqa: E731
        return self._do("recorded_steps", steps)

    def log_points(self, run_id, points):
        assert len(points) <= 1000
        if self.refused_steps & {point.step for point in points}:
            raise ValueError("no such step")
        rows = {(run_id, point.metric, point.step, point.time, repr(point.value)) for point in points}
        self._do("log_points", lambda: self.points.update(rows))

    def log_params(self, run_id, params):
        self._do("log_params", lambda: self.params.setdefault(run_id, {}).update(params))

    def set_tags(self, run_id, tags):
        self._do("set_tags", lambda: self.tags.setdefault(run_id, {}).update(tags))

    def delete_tag(self, run_id, tag):
        self._do("delete_tag", lambda: self.tags[run_id].pop(tag, None))

    def log_dataset(self, run_id, dataset):
        self._do("log_dataset")

    def log_artifact(self, run_id, path, folder):
        if path.name in self.refused:
            raise RuntimeError("no credentials for the bucket")
        self._do("log_artifact", lambda: self.artifacts.update([path.name]))

    def log_model_input(self, run_id, digest):
        self._do("log_model_input")

    def register_model(self, run_id, key, folder, registered):
        self._do("register_model")

    def log_model(self, run_id, key, model):
        self._do("log_model")


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch):
    monkeypatch.setattr(patience, "_FIRST_DELAY_SECONDS", 0.001)
    monkeypatch.setattr(patience, "_LONGEST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(patience, "_CLOSING_DELAY_SECONDS", 0.001)
    monkeypatch.setattr("cluster.recording.replay._POLL_SECONDS", 0.005)


def run_job(folder, store, steps, seconds=100.0, ends=None):
    book = RecordBook(folder, store, system_seconds=None)
    with (
        contextlib.suppress(KeyboardInterrupt, RuntimeError),
        book.opened("", "job", "pipeline", None) as run,
        run.child("train") as child,
    ):
        for step in steps:
            child.log_metrics({"loss": 1 / step, "lr": 0.1}, step=step, tokens=step * 1024)
        if ends:
            raise ends
    return book.close(seconds)


def expected_rows(run_id, steps):
    return {(run_id, metric, step) for metric in ("loss", "lr", "tokens") for step in steps}


def child_of(store):
    (run_id,) = [run_id for run_id, key in store.runs.items() if key.endswith("/train")]
    return run_id


@pytest.mark.parametrize("seed", range(8))
def test_each_point_arrives_once_however_calls_fail(tmp_path, seed):
    chance = random.Random(seed)
    store = Unreliable(lambda call: chance.choices([None, "before", "after"], [5, 3, 3])[0])
    assert run_job(tmp_path / "tracking", store, range(1, 1501))
    run_id = child_of(store)
    assert set(store.rows) == expected_rows(run_id, range(1, 1501))
    assert set(store.rows.values()) == {1}
    assert len(store.runs) == 2
    assert {store.statuses[run_id] for run_id in store.runs} == {"FINISHED"}


@pytest.mark.parametrize("num_calls_until_killed", [4, 7, 8, 9, 10, 11])
def test_rerun_of_a_replay_that_stopped_anywhere_completes_it_without_duplicates(tmp_path, num_calls_until_killed):
    store = Unreliable()
    store.fails = lambda call: None if store.num_calls < num_calls_until_killed else "before"
    assert not run_job(tmp_path / "tracking", store, range(1, 700), seconds=0.3)
    store.fails = lambda call: None
    assert run_job(tmp_path / "tracking", store, range(500, 900))  # repeats 200 steps, as a resumed training does
    assert set(store.rows) == expected_rows(child_of(store), range(1, 900))
    assert set(store.rows.values()) == {1}
    assert len(store.runs) == 2


@pytest.mark.parametrize("damage", ["", "{", '{"store": "another"}', '{"store": "the store", "runs": {}}'])
def test_lost_or_damaged_run_json_costs_no_point_and_no_second_run(tmp_path, damage):
    store = Unreliable()
    folder = tmp_path / "tracking"
    assert run_job(folder, store, range(1, 200))
    (folder / "run.json").write_text(damage)
    assert run_job(folder, store, range(200, 300))
    assert set(store.rows) == expected_rows(child_of(store), range(1, 300))
    assert set(store.rows.values()) == {1}
    assert len(store.runs) == 2


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), RuntimeError("a full disk")])
def test_long_run_that_is_stopped_and_continued_has_the_thinned_history_of_a_calm_one(tmp_path, ends):
    calm, torn = Unreliable(), Unreliable()
    assert run_job(tmp_path / "calm", calm, range(1, 4998))
    assert run_job(tmp_path / "torn", torn, range(1, 3000), ends=ends)
    assert run_job(tmp_path / "torn", torn, range(2500, 4998))
    steps = [*range(1, 2000), *range(2000, 4997, 2), 4997]
    for store in (calm, torn):
        assert set(store.rows) == expected_rows(child_of(store), steps)
        assert set(store.rows.values()) == {1}


def test_runs_deleted_from_the_store_are_written_anew(tmp_path, capsys):
    store = Unreliable()
    assert run_job(tmp_path / "tracking", store, range(1, 50))
    store.runs.clear()
    store.points.clear()
    assert run_job(tmp_path / "tracking", store, range(50, 60))
    assert set(store.rows) == expected_rows(child_of(store), range(1, 60))
    assert "is gone" in capsys.readouterr().err


def test_outage_is_told_once_and_the_job_does_not_wait_for_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(patience, "_QUIET_OUTAGE_SECONDS", 0.0)
    monkeypatch.setattr("cluster.recording.replay._CLOSING_OUTAGE_SECONDS", 0.1)
    store = Unreliable(lambda call: "before")
    assert not run_job(tmp_path / "tracking", store, range(1, 100))
    told = capsys.readouterr().err
    assert told.count("does not answer (connection refused)") == 1
    assert "the job goes on" in told
    assert store.points == set()
    store.fails = lambda call: None
    replayer = Replayer(tmp_path / "tracking", store)
    replayer.start()
    assert replayer.finish(100)
    assert set(store.rows) == expected_rows(child_of(store), range(1, 100))


def test_artifact_the_store_never_takes_is_set_aside_and_holds_nothing_up(tmp_path, capsys):
    store = Unreliable()
    store.refused = {"a.txt"}
    book = RecordBook(tmp_path / "tracking", store, system_seconds=None)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    with book.opened("", "job", "pipeline", None) as run:
        run.log_artifact(tmp_path / "a.txt")
        run.log_artifact(tmp_path / "b.txt")
        run.log_metrics({"loss": 1.0}, step=1)
    assert book.close(100.0)
    assert store.artifacts == {"b.txt": 1}
    assert sum(store.rows.values()) == 1
    assert "did not take artifact" in capsys.readouterr().err


def test_run_created_twice_by_a_late_request_is_deleted(tmp_path):
    store = Unreliable()
    store.fails = lambda call: "before" if store.num_calls == 3 else None  # the first create_run
    book = RecordBook(tmp_path / "tracking", store, system_seconds=None)
    with book.opened("", "job", "pipeline", None) as run:
        while run.run_id is None:
            time.sleep(0.001)
        store.runs["late"] = store.runs[run.run_id]
        run.log_metrics({"loss": 1.0}, step=1)
    assert book.close(100.0)
    assert list(store.runs) == [run.run_id]


def test_worker_journal_is_followed_to_its_end_before_the_run_closes(tmp_path):
    store = Unreliable()
    book = RecordBook(tmp_path / "tracking", store, system_seconds=None)
    worker = Journal(tmp_path / "metrics.jsonl")
    with book.opened("", "job", "pipeline", None) as run, run.child("train") as child:
        child.follow(tmp_path / "metrics.jsonl")
        for step in range(1, 300):
            worker.append_metrics({"loss": 1.0, "lr": 0.1}, step=step, tokens=step)
    assert book.close(100.0)
    assert set(store.rows) == expected_rows(child_of(store), range(1, 300))
    assert store.statuses[child_of(store)] == "FINISHED"


def test_slow_store_has_the_final_statuses_even_where_records_still_wait(tmp_path):
    """And the request that was under way, which lands when the next job is at it, makes no second row."""
    store = Unreliable()
    asked, answer = threading.Event(), threading.Event()

    def wait(call):
        if call == "log_points":
            asked.set()
            answer.wait(100)

    store.fails = wait
    book = RecordBook(tmp_path / "tracking", store, system_seconds=None)
    with book.opened("", "job", "pipeline", None) as run, run.child("train") as child:
        for step in range(1, 5000):
            child.log_metrics({"loss": 1 / step, "lr": 0.1}, step=step, tokens=step * 1024)
        assert asked.wait(100)
    assert not book.close(0.1)
    assert store.points == set()
    assert [store.statuses[run_id] for run_id in store.runs] == ["FINISHED", "FINISHED"]
    store.fails = lambda call: answer.set() if call == "log_points" else None
    assert run_job(tmp_path / "tracking", store, range(5000, 5001))
    steps = [*range(1, 2000), *range(2000, 5000, 2), 4999, 5000]
    assert set(store.rows) == expected_rows(child_of(store), steps)
    assert set(store.rows.values()) == {1}


def test_a_store_that_falls_silent_at_the_end_does_not_hold_up_the_job_for_its_statuses(tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.recording.replay._FINAL_STATUS_SECONDS", 0.1)
    store, silent, answer = Unreliable(), threading.Event(), threading.Event()
    store.fails = lambda call: silent.is_set() and answer.wait(100) and None
    book = RecordBook(tmp_path / "tracking", store, system_seconds=None)
    with book.opened("", "job", "pipeline", None) as run:
        while run.run_id is None:
            time.sleep(0.001)
        silent.set()
    began = time.monotonic()
    assert not book.close(0.1)
    assert time.monotonic() - began < 10
    answer.set()


@pytest.mark.parametrize("seed", range(4))
def test_requests_that_land_after_their_repetition_make_no_second_row(tmp_path, seed):
    chance = random.Random(seed)
    late = lambda call: "late" if call == "log_points" and chance.random() < 0.6 else None  # noqa: E731
    store = Unreliable(late)
    assert run_job(tmp_path / "tracking", store, range(1, 1501))
    store.fails = lambda call: None
    assert store.late
    store.land_late()
    assert run_job(tmp_path / "tracking", store, range(1400, 1600))
    assert set(store.rows) == expected_rows(child_of(store), range(1, 1600))
    assert set(store.rows.values()) == {1}


def test_lines_lost_with_the_power_are_not_sent_a_second_time_when_training_repeats_them(tmp_path):
    store, folder = Unreliable(), tmp_path / "tracking"
    assert run_job(folder, store, range(1, 300))
    journal = folder / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9000])  # the store and run.json know more than the disk
    assert run_job(folder, store, range(150, 500))
    assert set(store.rows) == expected_rows(child_of(store), range(1, 500))
    assert set(store.rows.values()) == {1}


def test_a_store_that_never_answers_does_not_hold_up_the_job_whose_threads_never_ask_it(tmp_path):
    store, answer = Unreliable(), threading.Event()
    store.fails = lambda call: answer.wait(100) and None
    book = RecordBook(tmp_path / "tracking", store, system_seconds=None)
    with book.opened("", "job", "pipeline", None) as run, run.child("train") as child:
        child.log_settings({"a": 1})
        for step in range(1, 1000):
            child.log_metrics({"loss": 1 / step, "lr": 0.1}, step=step, tokens=step)
        child.log_dataset("corpus", "d" * 64, "/corpus")
        child.log_table([{"a": 1}], "samples.json")
        child.log_model("step-999", step=999, metrics={"loss": 0.1})
    assert store.num_calls <= 1  # it may have begun to connect; nothing waited for it
    answer.set()
    assert book.close(100.0)
    assert store.threads == {"herd-tracking"}
    assert set(store.rows) == expected_rows(child_of(store), range(1, 1000))


def test_a_store_of_two_seconds_a_call_costs_the_training_side_less_than_one_call(tmp_path):
    """Driver and rank 0 append what a training run of 2,000 steps records; no append waits for the store."""
    store = Unreliable(lambda call: time.sleep(2.0))
    book, worker = RecordBook(tmp_path / "tracking", store, system_seconds=None), Journal(tmp_path / "metrics.jsonl")
    began = time.monotonic()
    with book.opened("", "job", "pipeline", None) as run, run.child("train") as child:
        child.follow(worker.path)
        for step in range(1, 2001):
            worker.append_metrics({"loss": 1 / step, "lr": 0.1}, step=step, tokens=step)
            child.log_metrics({"validation_loss": 1 / step}, step=step)
        child.log_dataset("corpus", "d" * 64, "/corpus")
        child.log_model("step-2000", step=2000, metrics={"loss": 0.1})
    assert time.monotonic() - began < 2.0
    book.close(0.0)


def test_one_refused_point_does_not_take_its_neighbours_with_it(tmp_path, capsys):
    store = Unreliable()
    store.refused_steps = {77}
    assert run_job(tmp_path / "tracking", store, range(1, 400))
    assert set(store.rows) == expected_rows(child_of(store), [step for step in range(1, 400) if step != 77])
    assert "refused 1 points" in capsys.readouterr().err


def test_what_is_appended_just_before_the_closing_is_sent(tmp_path, monkeypatch):
    """The replay has looked and found nothing; then come the last records and the wish to close."""
    store, looked, appended = Unreliable(), threading.Event(), threading.Event()
    advance = Replayer._advance

    def look(self):
        found = advance(self)
        if not found and not looked.is_set():
            looked.set()
            appended.wait(100)
        return found

    monkeypatch.setattr(Replayer, "_advance", look)
    book = RecordBook(tmp_path / "tracking", store, system_seconds=None)
    with book.opened("", "job", "pipeline", None) as run:
        assert looked.wait(100)
        run.log_metrics({"loss": 1.0}, step=1)
    assert book._replayer is not None
    book._replayer._patience.closing.set()
    appended.set()
    assert book.close(100.0)
    assert len(store.rows) == 1
    assert list(store.statuses.values()) == ["FINISHED"]


def test_run_json_on_a_full_disk_is_told_once_and_keeps_nothing_from_the_store(tmp_path, monkeypatch, capsys):
    def full(self, path):
        raise OSError(28, "No space left on device")

    store = Unreliable()
    with monkeypatch.context() as patch:
        patch.setattr(Acknowledged, "save", full)
        assert run_job(tmp_path / "tracking", store, range(1, 100))
    assert capsys.readouterr().err.count("run.json cannot be written") == 1
    assert run_job(tmp_path / "tracking", store, range(100, 200))
    assert set(store.rows) == expected_rows(child_of(store), range(1, 200))
    assert set(store.rows.values()) == {1}
    assert len(store.runs) == 2
