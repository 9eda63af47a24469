"""The copy of a training run's journal that lies beside its checkpoints in a store, where nothing can be appended.

Rank 0 appends to a local file and copies it here before each checkpoint: whoever resumes from one elsewhere finds
the lines of all steps before it.
"""

import contextlib
import shutil
from pathlib import Path

from cluster.recording.journal import Journal, read_all
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
    """Append the steps that the copy under a URL has and the journal has not: those trained on other machines."""
    storage = Storage.of(output)
    url = storage.join(journal.name)
    if not storage.exists(url):
        return
    known = {record["step"] for record in read_all(journal)}
    with storage.on_disk(url) as copy, contextlib.closing(Journal(journal)) as opened:
        for record in read_all(copy):
            if record["step"] not in known:
                opened.append(record)
