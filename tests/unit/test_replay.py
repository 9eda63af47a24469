"""The replay against a store in memory that fails before or after it has acted, and keeps duplicates."""

import itertools
import random
import time
from collections import Counter

import pytest

from cluster import patience
from cluster.record_book import RecordBook
from cluster.replay import Replayer


class Unreliable:
    """A store that counts what it gets; `fails` decides for each call if it fails, and if it acts first."""

    name = "the store"

    def __init__(self, fails=lambda call: None):
        self.fails = fails
        self.runs, self.parents, self.statuses = {}, {}, {}
        self.rows = Counter()
        self.tags, self.params, self.artifacts, self.refused = {}, {}, Counter(), set()
        self.num_calls = 0
        self._ids = itertools.count()

    def _do(self, call, action=lambda: None):
        self.num_calls += 1
        outcome = self.fails(call)
        if outcome == "before":
            raise ConnectionError("connection refused")
        result = action()
        if outcome == "after":
            raise TimeoutError("no answer")
        return result

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
        rows = lambda: {step for one, name, step in self.rows if (one, name) == (run_id, metric)}  # noqa: E731
        return self._do("recorded_steps", rows)

    def log_points(self, run_id, points):
        assert len(points) <= 1000
        self._do("log_points", lambda: self.rows.update((run_id, point.metric, point.step) for point in points))

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
    monkeypatch.setattr("cluster.replay._POLL_SECONDS", 0.005)


def run_job(folder, store, steps, seconds=20.0):
    book = RecordBook(folder, store, system_seconds=None)
    with book.opened("", "job", "pipeline", None) as run, run.child("train") as child:
        for step in steps:
            child.log_metrics({"loss": 1 / step, "lr": 0.1}, step=step, tokens=step * 1024)
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


def test_long_run_sends_a_thinned_history_with_its_last_point_over_restarts(tmp_path):
    calm, torn = Unreliable(), Unreliable()
    assert run_job(tmp_path / "calm", calm, range(1, 4998))
    assert run_job(tmp_path / "torn", torn, range(1, 3000))
    assert run_job(tmp_path / "torn", torn, range(2500, 4998))
    steps = sorted(step for _, metric, step in calm.rows if metric == "loss")
    assert steps == [*range(1, 2000), *range(2000, 4997, 2), 4997]
    # The earlier end was sent as a last point, and stays.
    assert sorted(step for _, metric, step in torn.rows if metric == "loss") == sorted({*steps, 2999})
    assert set(torn.rows.values()) == {1}


def test_runs_deleted_from_the_store_are_written_anew(tmp_path, capsys):
    store = Unreliable()
    assert run_job(tmp_path / "tracking", store, range(1, 50))
    store.runs.clear()
    store.rows.clear()
    assert run_job(tmp_path / "tracking", store, range(50, 60))
    assert set(store.rows) == expected_rows(child_of(store), range(1, 60))
    assert "is gone" in capsys.readouterr().err


def test_outage_is_told_once_and_the_job_does_not_wait_for_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(patience, "_QUIET_OUTAGE_SECONDS", 0.0)
    monkeypatch.setattr("cluster.replay._CLOSING_OUTAGE_SECONDS", 0.1)
    store = Unreliable(lambda call: "before")
    assert not run_job(tmp_path / "tracking", store, range(1, 100))
    told = capsys.readouterr().err
    assert told.count("does not answer (connection refused)") == 1
    assert "the job goes on" in told
    assert store.rows == {}
    store.fails = lambda call: None
    replayer = Replayer(tmp_path / "tracking", store)
    replayer.start()
    assert replayer.finish(20)
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
    assert book.close(20.0)
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
    assert book.close(20.0)
    assert list(store.runs) == [run.run_id]


def test_worker_journal_is_followed_to_its_end_before_the_run_closes(tmp_path):
    from cluster.journal import Journal

    store = Unreliable()
    book = RecordBook(tmp_path / "tracking", store, system_seconds=None)
    worker = Journal(tmp_path / "metrics.jsonl")
    with book.opened("", "job", "pipeline", None) as run, run.child("train") as child:
        child.follow(tmp_path / "metrics.jsonl")
        for step in range(1, 300):
            worker.append_metrics({"loss": 1.0, "lr": 0.1}, step=step, tokens=step)
    assert book.close(20.0)
    assert set(store.rows) == expected_rows(child_of(store), range(1, 300))
    assert store.statuses[child_of(store)] == "FINISHED"


def test_slow_store_has_the_final_statuses_even_where_records_still_wait(tmp_path):
    store = Unreliable()
    store.fails = lambda call: time.sleep(0.5) if call == "log_points" else None
    assert not run_job(tmp_path / "tracking", store, range(1, 5000), seconds=0.3)
    assert sum(store.rows.values()) < 3 * 4999
    assert [store.statuses[run_id] for run_id in store.runs] == ["FINISHED", "FINISHED"]
    store.fails = lambda call: None
    assert run_job(tmp_path / "tracking", store, range(5000, 5001))
    assert set(store.rows.values()) == {1}
