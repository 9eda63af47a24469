"""The one thread of a job that replays its journals to the tracking store.

It reads the journals from where the store has acknowledged them, sends each (metric, step) once,
waits out outages, and ends when the job's closing record has arrived. Callers only ever append to a
journal, so neither a slow store nor an absent one slows the work.

Exactly once rests on three things. The journal decides which points count (:class:`cluster.recording.journal.Series`),
and a point is sent with the journal's time and value however often it is sent: to MLflow's database the same
(run, metric, step, time, value) is the same row, so a request that was given up and lands after its
repetition changes nothing. run.json holds the offset up to which the store has answered. What lies behind
that offset, or was in flight when a call failed, is compared with the store by (metric, step) before it is
sent again: a machine that lost its power may have lost lines that the store has.
"""

import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.progress import say
from cluster.recording.acknowledged import Acknowledged, RecordedSteps
from cluster.recording.journal import Point, Record, Series, Tail, points_of, read_all
from cluster.recording.patience import AbandonedError, Patience, RefusedError, Store, first_line

JOURNAL_NAME, STATE_NAME = "journal.jsonl", "run.json"
POINTS_PER_BATCH = 1000  # MLflow's limit for one log_batch
_POLL_SECONDS = 0.5
_CLOSING_OUTAGE_SECONDS = 10.0
_FINAL_STATUS_SECONDS = 8.0


class Replayer:
    """Sends the journals under `folder` to the store from a thread of its own."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder, self._store = folder, store
        self._state_path = folder / STATE_NAME
        self._acknowledged = Acknowledged.load(self._state_path, store.name)
        self._acknowledged.forget_lost_lines(folder)
        self._key = ""
        self._tails = {JOURNAL_NAME: Tail(folder / JOURNAL_NAME)}
        self._followers: dict[str, str] = {}  # journal -> key of the run its points belong to
        self._forget()
        self._steps = RecordedSteps(store.recorded_steps)
        self._patience = Patience(store, folder)
        self._done = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="herd-tracking", daemon=True)

    def _forget(self) -> None:
        self._series: defaultdict[tuple[str, str], Series] = defaultdict(Series)
        self._pending: defaultdict[str, list[Point]] = defaultdict(list)
        self._opened: dict[str, Record] = {}
        self._params: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._tables: defaultdict[str, list[str]] = defaultdict(list)
        self._failed: set[str] = set()
        self._closed: set[str] = set()
        self._check_twins: set[str] = set()
        self._live = False
        self._told_unsaved = False

    @property
    def run_ids(self) -> dict[str, str]:
        """Ids of the runs in the store, by run key; a run is in it once the store has answered."""
        return dict(self._acknowledged.runs)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def finish(self, seconds: float) -> bool:
        """Wait until all records are sent; give up after `seconds`, sooner if the store does not answer.

        A store that is only slow gets the final statuses out of turn, before the records that still wait.

        Returns:
            Whether the store has everything; if not, a later replay sends the rest.
        """
        self._patience.closing.set()
        began = time.monotonic()
        try:
            while not self._ended.wait(0.05) and time.monotonic() - began < seconds:
                if min(time.monotonic() - began, self._patience.outage_seconds()) > _CLOSING_OUTAGE_SECONDS:
                    break
        finally:  # an impatient second Ctrl-C arrives here as well
            self._patience.abandoned.set()
        if not self._done.is_set() and not self._patience.outage_seconds():
            sending = threading.Thread(target=self._send_final_statuses, name="herd-final-status", daemon=True)
            sending.start()
            sending.join(_FINAL_STATUS_SECONDS)  # the store may have fallen silent just now
        return self._done.is_set()

    def _send_final_statuses(self) -> None:
        closed: dict[str, Record] = {}
        for record in read_all(self._folder / JOURNAL_NAME):
            if record["do"] == "close":
                closed[record["run"]] = record
            elif record["do"] == "open":
                closed.pop(record["run"], None)
        for run, run_id in self.run_ids.items():
            if run in closed and run not in self._closed:
                with contextlib.suppress(Exception):  # one try: the job has ended, and a rerun sets them again
                    self._store.set_status(run_id, closed[run]["status"], closed[run]["time"])

    def _run(self) -> None:
        try:
            self._patience.call(self._store.connect)
            self._catch_up()
            closing = False
            # Asked before each look: what was appended before the closing is still read.
            while self._advance() or not closing:
                self._patience.closing.wait(_POLL_SECONDS)
                closing = self._patience.closing.is_set()
            self._done.set()
        except AbandonedError:
            pass
        except Exception as error:  # a full disk, for one; the job itself must go on
            say(f"tracking: stopped ({first_line(error)}); the records stay in {self._folder}")
        finally:
            self._ended.set()

    # Reading

    def _catch_up(self) -> None:
        """Rebuild what counts from the acknowledged part of the journals, without sending it."""
        self._key = next(record["key"] for record in read_all(self._folder / JOURNAL_NAME) if record["do"] == "job")
        ids = list(self._acknowledged.runs.values())
        if not all(self._patience.call(lambda run_id=run_id: self._store.is_active(run_id)) for run_id in ids):
            say(f"tracking: a run of this job is gone from {self._store.name}; it is written anew")
            self._acknowledged = Acknowledged(self._store.name)
        self._live = False
        self._read_acknowledged(JOURNAL_NAME)
        for name in list(self._followers):
            self._read_acknowledged(name)
        self._live = True

    def _read_acknowledged(self, name: str) -> None:
        end = self._acknowledged.offsets.get(name, 0)
        tail = self._tails[name]
        while tail.offset < end and (records := tail.read(end)):
            for record in records:
                self._apply(name, record)

    def _advance(self) -> bool:
        """Send what the journals have gained; return whether there was anything."""
        moved = [self._drain(name, limit=1) for name in list(self._tails)]
        return any(moved)

    def _drain(self, name: str, limit: int | None = None) -> bool:
        """Send up to `limit` blocks of one journal, all of it if None, and acknowledge each."""
        num_blocks = 0
        tail = self._tails[name]
        while (limit is None or num_blocks < limit) and (records := tail.read()):
            for record in records:
                self._apply(name, record)
            self._flush_all()
            self._acknowledged.offsets[name] = tail.offset
            self._save()
            num_blocks += 1
        return num_blocks > 0

    def _save(self) -> None:
        if self._patience.abandoned.is_set():  # another process may own the folder by now
            raise AbandonedError
        try:
            self._acknowledged.save(self._state_path)
        except OSError as error:  # a full disk: the next start compares more with the store, and finds all of it
            if not self._told_unsaved:
                say(f"tracking: {self._state_path} cannot be written ({first_line(error)}); the job goes on")
            self._told_unsaved = True

    # Records

    def _apply(self, source: str, record: Record) -> None:
        run = self._followers.get(source, record.get("run", ""))
        handler = getattr(self, f"_on_{record['do']}", None)
        if handler is not None:
            handler(run, record)

    def _on_metrics(self, run: str, record: Record) -> None:
        for point in points_of(record):
            taken = self._series[run, point.metric].take(point)
            if taken and self._live:
                self._pending[run].append(taken)
        if len(self._pending[run]) >= POINTS_PER_BATCH:
            self._flush(run)

    def _on_open(self, run: str, record: Record) -> None:
        self._opened.setdefault(run, record)
        if not self._live:
            return
        self._closed.discard(run)
        if run not in self._acknowledged.runs:
            self._acknowledged.runs[run] = self._find_or_create(run)
            self._save()
        self._offer(run, "status", lambda: self._store.set_status(self._id(run), "RUNNING", None))

    def _on_follow(self, run: str, record: Record) -> None:
        name = record["path"]
        self._followers[name] = run
        self._tails.setdefault(name, Tail(self._folder / name))

    def _on_params(self, run: str, record: Record) -> None:
        first = self._params[run]
        changed = {name: value for name, value in record["params"].items() if first.get(name, value) != value}
        new = {name: value for name, value in record["params"].items() if name not in first}
        if self._live and new:
            self._offer(run, "settings", lambda: self._store.log_params(self._id(run), new))
        if self._live and changed:  # MLflow's params cannot change: the first values stay, tags tell the rest
            tags = {f"herd.changed.{name}": f"{first[name]} -> {value}" for name, value in changed.items()}
            self._offer(run, "tags", lambda: self._store.set_tags(self._id(run), tags))
        first.update(new)

    def _on_tags(self, run: str, record: Record) -> None:
        if self._live:
            self._offer(run, "tags", lambda: self._store.set_tags(self._id(run), record["tags"]))

    def _on_dataset(self, run: str, record: Record) -> None:
        if self._live:
            what = f"dataset {record['name']}"
            self._offer(run, what, lambda: self._store.log_dataset(self._id(run), record))

    def _on_artifact(self, run: str, record: Record) -> None:
        folder, path = record["folder"], self._folder / record["path"]
        if record["table"]:
            self._tables[run].append(f"{folder}/{path.name}" if folder else path.name)
        if not self._live:
            return
        self._offer(run, f"artifact {path}", lambda: self._store.log_artifact(self._id(run), path, folder))
        if record["table"]:  # the page shows a table where this tag names one
            names = [{"path": name, "type": "table"} for name in dict.fromkeys(self._tables[run])]
            tags = {"mlflow.loggedArtifacts": json.dumps(names)}
            self._offer(run, "tags", lambda: self._store.set_tags(self._id(run), tags))

    def _on_model(self, run: str, record: Record) -> None:
        if self._live:
            key = f"{self._store_key(run)}#{record['name']}"
            what = f"model {record['name']}"
            self._offer(run, what, lambda: self._store.log_model(self._id(run), key, record))

    def _on_model_input(self, run: str, record: Record) -> None:
        if self._live:
            what = f"checkpoint {record['digest']}"
            self._offer(run, what, lambda: self._store.log_model_input(self._id(run), record["digest"]))

    def _on_register(self, run: str, record: Record) -> None:
        if self._live:
            key = f"{self._store_key(run)}#{record['checkpoint']}"
            what, folder = f"registered model {record['name']}", self._folder / record["path"]
            self._offer(run, what, lambda: self._store.register_model(self._id(run), key, folder, record))

    def _on_close(self, run: str, record: Record) -> None:
        failure, had_failed = record["failure"], run in self._failed
        (self._failed.add if failure else self._failed.discard)(run)
        if not self._live:
            return
        for name, owner in list(self._followers.items()):
            if owner == run:
                self._drain(name)
        if record["status"] == "FINISHED":  # one that was stopped goes on: where it stopped must leave no trace
            self._take_last_points(run)
        self._flush(run)
        if failure:
            self._offer(run, "tags", lambda: self._store.set_tags(self._id(run), {"herd.failure": failure}))
        elif had_failed:
            self._offer(run, "tags", lambda: self._store.delete_tag(self._id(run), "herd.failure"))
        self._offer(run, "status", lambda: self._store.set_status(self._id(run), record["status"], record["time"]))
        self._closed.add(run)
        self._delete_twins(run)

    def _take_last_points(self, run: str) -> None:
        for (owner, _), series in self._series.items():
            if owner == run and (last := series.take_held()):
                self._pending[run].append(last)

    # Sending

    def _id(self, run: str) -> str:
        return self._acknowledged.runs[run]

    def _store_key(self, run: str) -> str:
        return f"{self._key}/{run}" if run else self._key

    def _find_or_create(self, run: str) -> str:
        """Return the run's id, of the run with our key if there is one: an earlier try may have landed."""
        tries = 0

        def attempt() -> str:
            nonlocal tries
            tries += 1
            found = self._store.find_runs(self._store_key(run))
            if found:
                self._check_twins.add(run)
                return found[0]
            opened = self._opened[run]
            parent = opened["parent"]
            run_id = self._store.create_run(self._store_key(run), opened, None if parent is None else self._id(parent))
            self._steps.trust_empty(run_id)
            return run_id

        run_id = self._patience.call(attempt)
        if tries > 1:
            self._check_twins.add(run)
        return run_id

    def _delete_twins(self, run: str) -> None:
        """Delete a second run of the same key: a request we had given up may have landed late."""
        if run not in self._check_twins:
            return
        for run_id in self._patience.call(lambda: self._store.find_runs(self._store_key(run))):
            if run_id != self._id(run):
                self._offer(run, "twin run", lambda run_id=run_id: self._store.delete_run(run_id))

    def _flush_all(self) -> None:
        for run in list(self._pending):
            self._flush(run)

    def _flush(self, run: str) -> None:
        points, self._pending[run] = self._pending[run], []
        for start in range(0, len(points), POINTS_PER_BATCH):
            self._send(run, points[start : start + POINTS_PER_BATCH])

    def _send(self, run: str, points: list[Point]) -> None:
        run_id = self._id(run)

        def attempt() -> None:
            missing = self._steps.unrecorded(run_id, points)
            if not missing:
                return
            try:
                self._store.log_points(run_id, missing)
            except Exception:
                self._steps.doubt(run_id, missing)
                raise

        try:
            self._patience.call(attempt, may_refuse=True)
        except RefusedError as error:
            if len(points) > 1 and self._patience.call(lambda: self._store.is_active(run_id)):
                middle = len(points) // 2  # one point must not take its neighbours with it
                self._send(run, points[:middle])
                self._send(run, points[middle:])
                return
            say(f"tracking: {self._store.name} refused {len(points)} points, kept in {self._folder}: {error}")

    def _offer(self, run: str, what: str, call: Callable[[], Any]) -> None:
        """Send something other than points, after the points before it.

        It is set aside with a warning if the store refuses it, or keeps failing on it alone.
        """
        self._flush(run)
        try:
            self._patience.call(call, may_refuse=True, alive=lambda: self._store.is_active(self._id(run)))
        except RefusedError as error:
            say(f"tracking: {self._store.name} did not take {what}: {error}")
