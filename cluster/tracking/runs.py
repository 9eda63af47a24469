"""The run of a job, opened for the length of the job, or sent after it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cluster.progress import say
from cluster.recording.acknowledged import Acknowledged
from cluster.recording.journal import room_needed
from cluster.recording.record_book import RecordBook, Run
from cluster.recording.replay import JOURNAL_NAME, STATE_NAME, Replayer
from cluster.tracking.address import TrackingOptions
from cluster.tracking.store import MlflowStore
from gpt_core.errors import ResourceError
from gpt_core.sole_writer import sole_writer


@contextlib.contextmanager
def open_run(options: TrackingOptions, *, name: str, kind: str, output: Path, key: str | None = None) -> Iterator[Run]:
    """Open the run of a job for the length of the block.

    The run ends FINISHED; FAILED with the reason as tag `herd.failure` if the block raises; KILLED on
    Ctrl-C, and with the reason where the settings end it early. If the store cannot be reached the job goes on and a
    rerun sends the rest.

    Args:
        options: Where records go.
        name: Name in the page.
        kind: Sort of job, kept as tag `herd.kind`.
        output: The job's local output folder; OUTPUT/tracking gets the journal and run.json.
        key: What the job's run in MLflow is found by where the folder has no records yet; None makes up a new one.

    Raises:
        ResourceError: If another job is writing to the same output folder, or nothing can be written there.
        SettingsError: If the address is one of a file store.
    """
    folder = output.absolute() / "tracking"
    with room_needed(folder):
        folder.mkdir(parents=True, exist_ok=True)
    store = MlflowStore(options, output.absolute().parent) if options.enabled else None
    with sole_job(output):
        if store is not None:
            store.prepare()
        book = RecordBook(folder, store, options.system_seconds, key)
        try:
            with book.opened("", name, kind, parent=None) as run:
                yield run
        finally:
            if not book.close(options.closing_seconds) and store is not None:
                say(f"tracking: {store.name} has not taken all records; a rerun sends those in {folder}")


def replay(options: TrackingOptions, output: Path, seconds: float = 600.0) -> bool:
    """Send what the journal of a finished or killed job still holds; return whether the store has all of it.

    Raises:
        ResourceError: If the job is still running, or the folder has no journal.
    """
    folder = output.absolute() / "tracking"
    if not (folder / JOURNAL_NAME).exists():
        raise ResourceError(str(output), "no tracking journal", "the output folder of a job", "check the path")
    store = MlflowStore(options, output.absolute().parent)
    with sole_job(output):
        store.prepare()
        replayer = Replayer(folder, store)
        replayer.start()
        return replayer.finish(seconds)


def send_rest(options: TrackingOptions, output: Path) -> None:
    """Send what the journal of a finished job still holds, where the store was away at its end; costs nothing else.

    The job's work is done: a store that is still away, or another process at the folder, is told and no error.
    """
    folder = output.absolute() / "tracking"
    journal = folder / JOURNAL_NAME
    if not options.enabled or not journal.exists():
        return
    store = MlflowStore(options, output.absolute().parent)
    taken = Acknowledged.load(folder / STATE_NAME, store.name).offsets.get(JOURNAL_NAME, 0)
    if taken >= journal.stat().st_size:
        return
    try:
        complete = replay(options, output, options.closing_seconds)
    except ResourceError as error:
        say(f"tracking: {error}")
    else:
        said = "has now taken all records of" if complete else "has not taken all records; a rerun sends those in"
        say(f"tracking: {store.name} {said} {folder}")


def sole_job(output: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a local output folder for this job while the body runs, by the lock OUTPUT/tracking/lock.

    Raises:
        ResourceError: Another job holds it, or nothing can be written there.
    """
    return sole_writer(output.absolute() / "tracking", "lock", patience_seconds=0.0)
