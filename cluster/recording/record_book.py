"""What a job records about itself: its runs, their settings, metrics, datasets and files.

Every call appends to the journal under OUTPUT/tracking and returns; :mod:`cluster.recording.replay` sends it on.
Jobs get a :class:`Run` from :func:`cluster.tracking.open_run`.
"""

import contextlib
import getpass
import json
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import yaml

from cluster.progress import say
from cluster.recording.journal import Journal, now_milliseconds, read_all, room_needed
from cluster.recording.loss_plot import draw_losses, read_points
from cluster.recording.patience import Store
from cluster.recording.record_text import clean, params_of
from cluster.recording.replay import JOURNAL_NAME, Replayer
from cluster.recording.system_metrics import SystemSampler
from gpt_core.credentials import without_credentials
from gpt_core.errors import ResourceError


class Run:
    """The job's record book: one run of MLflow, or a child of one."""

    def __init__(self, book: "RecordBook", key: str, name: str) -> None:
        self._book, self._key = book, key
        self.name = name

    @property
    def run_id(self) -> str | None:
        """MLflow's id of this run; None until the store has answered."""
        return self._book.run_ids().get(self._key)

    @property
    def folder(self) -> Path:
        """The folder of the journal; worker journals to :meth:`follow` may lie anywhere."""
        return self._book.folder

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Record nested settings as dotted params and as settings.yaml.

        A value longer than MLflow's 6,000 characters is cut with a note; a user name or password inside
        an address is left out. A setting that a resumed job changes keeps its first value as param and
        becomes a tag `herd.changed.NAME`.
        """
        plain = orjson.loads(orjson.dumps(settings, default=str, option=orjson.OPT_NON_STR_KEYS))
        self._append("params", params=params_of(plain))
        text = without_credentials(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
        self.log_file("settings.yaml", text.encode())

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, tokens: int | None = None) -> None:
        """Record values of one step; of several records of a (metric, step) the first one counts.

        Raises:
            ValueError: If a metric's name has characters MLflow refuses.
            ResourceError: If the disk is full, as in every other call.
        """
        self._book.journal.append_metrics(metrics, step=step, tokens=tokens, run=self._key)

    def log_load(self, sample: Mapping[str, float]) -> None:
        """Record a sample of a machine's load in all open runs of the job; steps are seconds since its start."""
        self._book.append_system(sample)

    def follow(self, metrics_journal: Path) -> None:
        """Take the points of another process's journal, such as training's rank 0, into this run."""
        path = os.path.relpath(metrics_journal, self._book.folder)
        self._append("follow", path=path)

    def log_dataset(
        self,
        name: str,
        digest: str,
        source: str,
        context: str = "training",
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a dataset as an input of the run.

        Args:
            name: Name in the page.
            digest: Its full digest; MLflow's own field holds 36 characters, the profile and a tag hold all.
            source: Path or URL.
            context: What it was used for.
            profile: Counts such as num_tokens.
        """
        full = {"digest": digest, **(profile or {})}
        self._append("dataset", name=name, digest=digest, source=clean(source), context=context, profile=full)
        self.set_tags({f"herd.dataset.{context}": digest})

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file that stays where it is; it is read when the store takes it."""
        self._log_artifact(path, folder, table=False)

    def log_file(self, name: str, content: bytes) -> None:
        """Record a file of this content; the same name replaces it."""
        self._log_artifact(self._write_file(name, content), None, table=False)

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Record rows as a table of the page; `name` ends in .json, and the same name replaces the table."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        table = {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
        path = self._write_file(name, json.dumps(table, ensure_ascii=False).encode())
        self._log_artifact(path, None, table=True)

    def log_loss_plot(self, metrics: tuple[str, ...] = ("loss", "validation_loss")) -> Path:
        """Draw the journal's losses into loss.png, record it, and return its path."""
        curves = read_points(self._book.journal.path, self._key, metrics)
        path = self._own_folder() / "loss.png"
        with room_needed(path):
            draw_losses(curves, self.name, path)
        self._log_artifact(path, "plots", table=False)
        return path

    def log_model(
        self, name: str, *, step: int, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None
    ) -> None:
        """Record a checkpoint as a model of the page, without its weights.

        Its metrics appear in the run as well, as checkpoint/NAME: a run's own metrics stay single.
        """
        values = {f"checkpoint/{metric}": float(value) for metric, value in metrics.items()}
        texts = {key: clean(value) for key, value in (tags or {}).items()}
        self._append("model", name=name, step=step, time=now_milliseconds(), metrics=values, tags=texts)

    def log_model_input(self, digest: str) -> None:
        """Record that the run used the checkpoint of this digest: a tag, and a link where the page knows it."""
        self.set_tags({"herd.checkpoint": digest})
        self._append("model_input", digest=digest)

    def register_model(self, folder: Path, name: str, alias: str, *, checkpoint: str) -> None:
        """Record that a folder in MLflow's model format becomes the newest version of a registered model.

        Args:
            folder: Stays where it is; it is read when the store takes it.
            name: Name of the registered model.
            alias: Alias that points to this version from then on.
            checkpoint: Name it was given in :meth:`log_model`, whose files it becomes.
        """
        path = os.path.relpath(folder, self._book.folder)
        self._append("register", path=path, name=name, alias=alias, checkpoint=checkpoint)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Record tags; later values replace earlier ones."""
        self._append("tags", tags={name: clean(value) for name, value in tags.items()})

    @contextlib.contextmanager
    def child(self, name: str, kind: str | None = None) -> Iterator["Run"]:
        """Open a child run; it ends with the block, FINISHED, FAILED or KILLED.

        Its name is its identity below this run: a rerun takes up the same child.
        """
        key = f"{self._key}/{name}" if self._key else name
        with self._book.opened(key, name, kind or name, parent=self._key) as run:
            yield run

    def _append(self, do: str, **fields: Any) -> None:
        self._book.journal.append({"do": do, "run": self._key, **fields})

    def _log_artifact(self, path: Path, folder: str | None, *, table: bool) -> None:
        relative = os.path.relpath(path, self._book.folder)
        self._append("artifact", path=relative, folder=folder, table=table)

    def _write_file(self, name: str, content: bytes) -> Path:
        path = self._own_folder() / name
        with room_needed(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(path.name + ".tmp")
            aside.write_bytes(content)
            aside.replace(path)
        return path

    def _own_folder(self) -> Path:
        return self._book.folder / "files" / self._key


class RecordBook:
    """The journal of one job, its open runs, and the replay that sends it."""

    def __init__(self, folder: Path, store: Store | None, system_seconds: float | None, key: str | None = None) -> None:
        self.folder = folder
        self.journal, self._began = _open_journal(folder, key or uuid.uuid4().hex)
        self._replayer = None if store is None else Replayer(folder, store)
        self._open_keys: set[str] = set()
        self._lock = threading.Lock()
        self._sampler = None if system_seconds is None else SystemSampler(self.append_system, system_seconds)
        if self._replayer:
            self._replayer.start()

    def run_ids(self) -> dict[str, str]:
        """Return MLflow's ids of the runs it knows, by run key."""
        return self._replayer.run_ids if self._replayer else {}

    @contextlib.contextmanager
    def opened(self, key: str, name: str, kind: str, parent: str | None) -> Iterator[Run]:
        """Record that a run opens and, with its outcome, that it closes."""
        opened = {
            "name": name,
            "kind": kind,
            "parent": parent,
            "time": now_milliseconds(),
            "user": _user_name(),
        }
        self.journal.append({"do": "open", "run": key, **opened})
        with self._lock:
            self._open_keys.add(key)
        try:
            yield Run(self, key, name)
        except BaseException as error:
            with contextlib.suppress(ResourceError):  # a disk that is full here as well: the first error is told
                self._append_end(key, *_outcome(error))
            raise
        self._append_end(key, "FINISHED", None)

    def close(self, seconds: float) -> bool:
        """Send what is left, for `seconds` at most; return whether the store has everything."""
        if self._sampler:
            self._sampler.stop()
        try:
            self.journal.sync()
        except ResourceError as error:  # the work is done or has its own error
            say(f"tracking: {error}")
        complete = self._replayer.finish(seconds) if self._replayer else True
        self.journal.close()
        return complete

    def append_system(self, sample: Mapping[str, float]) -> None:
        """Append a sample of a machine's load to all open runs."""
        with self._lock:
            keys = list(self._open_keys)
        for key in keys:
            self.journal.append_metrics(sample, step=self._seconds(), run=key)

    def _append_end(self, key: str, status: str, failure: str | None) -> None:
        with self._lock:
            self._open_keys.discard(key)
        if self._sampler:  # so that even a run of one second has a sample of its own
            self.journal.append_metrics(self._sampler.sample(), step=self._seconds(), run=key)
        closed = {"status": status, "failure": failure, "time": now_milliseconds()}
        self.journal.append({"do": "close", "run": key, **closed})

    def _seconds(self) -> int:
        # Steps of the system metrics: they go on growing in a resumed job.
        return (now_milliseconds() - self._began) // 1000


def unfinished_runs(folder: Path) -> set[str]:
    """Return the keys of the runs in a job's journal that did not end FINISHED: killed, failed, or still open."""
    unfinished: set[str] = set()
    for record in read_all(folder / JOURNAL_NAME):
        if record["do"] == "open":
            unfinished.add(record["run"])
        elif record["do"] == "close" and record["status"] == "FINISHED":
            unfinished.discard(record["run"])
    return unfinished


def _open_journal(folder: Path, key: str) -> tuple[Journal, int]:
    """Open the job's journal; a new one begins with the key that MLflow's runs will carry, and the time."""
    journal = Journal(folder / JOURNAL_NAME)
    for record in read_all(journal.path):
        if record["do"] == "job":
            return journal, record["time"]
    began = now_milliseconds()
    journal.append({"do": "job", "key": key, "time": began})
    journal.sync()
    return journal, began


def _outcome(error: BaseException) -> tuple[str, str | None]:
    """Return MLflow's status and the reason for a block that raised."""
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", clean(str(error)) or None
    if isinstance(error, SystemExit) and not error.code:
        return "FINISHED", None
    if isinstance(error, SystemExit) and error.code in (130, 143):
        return "KILLED", None
    return "FAILED", clean(f"{type(error).__name__}: {error}")


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have a user id without a name
        return "unknown"
