"""Keeps one corpus from being made of two versions of its input, or taken for that of another.

The cheap sign is a file's time of change; where it differs, contents are compared
(``gpt_core.documents.input_changes``).
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.progress import say
from gpt_core.corpus.manifest import Manifest
from gpt_core.counted import counted
from gpt_core.documents.input_changes import (
    InputFacts,
    edited_since,
    edited_since_made,
    gather,
    read_times,
    write_times,
)
from gpt_core.documents.shard_plan import ShardPlans
from gpt_core.documents.source_files import SourceFile
from gpt_core.errors import CorpusError, StaleOutputError
from gpt_core.ledger import FOLDER, Ledger
from gpt_core.storage import Storage

_TIMES = ".times"


def check_finished(plans: ShardPlans, made: Manifest) -> None:
    """Raise StaleOutputError if a file was edited, at the same size, since it went into a finished corpus.

    Files that were only copied or touched are compared once; their times are then kept beside the corpus.
    """
    if "changed_ns" not in made.files.column_names:
        return  # made before times were recorded
    kept = Storage.of(made.folder).join(_TIMES)
    now = plans.files.changed_ns
    before = read_times(kept, len(now))
    if before is None:
        before = made.files.column("changed_ns").to_numpy()
    suspects = _suspects(plans, before, now)
    if not suspects:
        return
    edited = edited_since_made(plans, suspects, made.files.column("digest").to_pylist())
    _refuse_stale(made.folder, "the corpus was made", edited)
    with contextlib.suppress(OSError):  # a corpus that is only read is as good
        write_times(kept, now)


def other_files(plans: ShardPlans, made: Manifest) -> StaleOutputError:
    """Return the error for a finished corpus that was made from files of other names or sizes, naming the first."""
    sizes = (made.files.column(name).to_pylist() for name in ("source", "name", "num_bytes"))
    before = {(source, name): num_bytes for source, name, num_bytes in zip(*sizes, strict=True)}
    now = {(file.source, file.name): file.num_bytes for file in plans.files}
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    found = "the same files in another order"
    if changed:
        first = changed[0]
        if first not in now:
            found = f"{first[1]} gone"
        elif first not in before:
            found = f"{first[1]} added"
        else:
            found = f"{first[1]} changed from {before[first]} to {now[first]} bytes"
        found += f", and {len(changed) - 1:,} more changed," if len(changed) > 1 else ""
    return StaleOutputError(
        f"{made.folder}: input files",
        f"{found} since the corpus was made",
        "the input it was made from",
        "restore the input, or choose another output folder",
    )


def check_resumed(folder: str, plans: ShardPlans) -> None:
    """Raise StaleOutputError if a file was edited, at the same size, since an unfinished job read some of it.

    Remembers the files' times for the next resume.
    """
    kept = Storage.of(folder).join(FOLDER, "times")
    now = plans.files.changed_ns
    before = read_times(kept, len(now))
    if before is not None and (suspects := _suspects(plans, before, now)):
        wanted = {plans.plan_of(piece) for number in suspects for piece in plans.pieces_of(number)}
        facts = gather(plans, Ledger(folder).rows_of(wanted))
        _refuse_stale(folder, "the unfinished job here read it", edited_since(plans, suspects, facts))
    if before is None or not np.array_equal(before, now):
        write_times(kept, now)


def check_unchanged(folder: str, plans: ShardPlans, facts: InputFacts, files_now: Sequence[SourceFile]) -> None:
    """Raise CorpusError if a file was edited, at the same size, while the job read it."""
    times = {(file.source, file.name): file.changed_ns for file in files_now}
    now = [times.get((file.source, file.name), file.changed_ns) for file in plans.files]
    suspects = _suspects(plans, plans.files.changed_ns, np.array(now, np.int64))
    if edited := edited_since(plans, suspects, facts):
        raise CorpusError(
            _named(edited),
            "other contents than when it was read",
            "input that nobody edits while the job runs",
            f"delete {folder} and run again",
        )


def _suspects(plans: ShardPlans, before: np.ndarray, now: np.ndarray) -> list[int]:
    suspects = np.flatnonzero(before != now).tolist()
    if suspects:
        num_bytes = sum(plans.files[number].num_bytes for number in suspects)
        told = counted(len(suspects), "input file")
        say(f"tokenize: comparing the contents of {told}, touched since, {num_bytes:,} bytes")
    return suspects


def _refuse_stale(folder: str, when: str, edited: Sequence[Any]) -> None:
    if edited:
        raise StaleOutputError(
            f"{folder}: input files",
            f"other contents of {_named(edited)} than when {when}",
            "the same contents",
            "restore the file, or choose another output folder",
        )


def _named(files: Sequence[SourceFile]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{files[0].path}{more}"
