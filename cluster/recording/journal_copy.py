"""The copies of a training run's journals that lie beside its checkpoints in a store, where nothing can be appended.

Rank 0 appends metrics and samples to local files and copies them here before each checkpoint: whoever resumes from one
elsewhere finds the lines of all steps before it.
"""

import contextlib
import shutil
from pathlib import Path

from cluster.recording.journal import Journal, Record, read_all
from gpt_core.errors import ResourceError
from gpt_core.storage import Storage


def upload_journal(journal: Path, output: str) -> None:
    """Replace the copy under a URL by the journal as it is now.

    Raises:
        ResourceError: If the store does not take it.
    """
    storage = Storage.of(output)
    url = storage.join(journal.name)
    try:
        with journal.open("rb") as lines:
            storage.write_atomically(url, lambda file: shutil.copyfileobj(lines, file))
    except OSError as error:
        raise ResourceError(url, str(error), "a store that takes it", "mend that and run it again") from error


def take_up_journal(journal: Path, output: str) -> None:
    """Append what the copy under a URL has and the journal has not: steps trained, or samples taken, elsewhere."""
    storage = Storage.of(output)
    url = storage.join(journal.name)
    if not storage.exists(url):
        return
    known = {_key(record) for record in read_all(journal)}
    with storage.on_disk(url) as copy, contextlib.closing(Journal(journal)) as opened:
        for record in read_all(copy):
            if _key(record) not in known:
                opened.append(record)


def _key(record: Record) -> tuple[int, str | None]:
    """Return the step of a line, and the prompt where it is a sample: a step has one of each."""
    return record["step"], record.get("prompt")
