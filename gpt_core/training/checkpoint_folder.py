"""Folders of checkpoints, on a disk or in a store: whole, or not there.

On a disk a folder is written aside, synced and renamed. A store has no rename: there the description is the last
file to be written and the first to be deleted, and a folder without one is no checkpoint.
Called by ``gpt_core.training.checkpoint``, which knows what is in the files.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from gpt_core.errors import CheckpointError
from gpt_core.storage import Location, Storage, Url, sync_folder

DESCRIPTION = "checkpoint.json"
PREFIX = "step-"
_NAME = re.compile(rf"{PREFIX}(\d{{8,}})")  # any other is not ours
_ASIDE = "aside-"
_DAMAGED = "damaged-"
T = TypeVar("T")


def list_folders(parent: Location) -> list[Location]:
    """Return the folders of checkpoints by rising step, those on a disk whole or not.

    Raises:
        CheckpointError: The store does not answer.
    """
    if isinstance(parent, Path):
        found = [path for path in parent.glob(f"{PREFIX}*") if _NAME.fullmatch(path.name) and path.is_dir()]
    else:
        found = [parent / name for name, files in _files_in(parent).items() if DESCRIPTION in files]
    return sorted(found, key=step_of)


def step_of(folder: Location) -> int:
    """Return the step that the name of a checkpoint's folder tells."""
    return int(folder.name.removeprefix(PREFIX))


def write_folder(target: Location, put_files: Callable[[Location], Any]) -> None:
    """Make a folder of what ``put_files`` puts into the one it is given, the description last; replace an older one."""
    if isinstance(target, Url):
        Storage.of(target).remove(str(target / DESCRIPTION))
        put_files(target)
        return
    aside = target.with_name(f"{_ASIDE}{target.name}")
    try:
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir(parents=True)
        put_files(aside)
        sync_folder(aside)
        _replace_folder(aside, target)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def put_file(file: Location, write: Callable[[BinaryIO], T]) -> T:
    """Make a file whose bytes ``write`` writes, durably, and return what it returns."""
    returned: list[T] = []
    if isinstance(file, Url):
        Storage.of(file).write_atomically(str(file), lambda opened: returned.append(write(opened)))
        return returned[0]
    with file.open("wb") as opened:
        returned.append(write(opened))
        opened.flush()
        os.fsync(opened.fileno())
    return returned[0]


def set_folder_aside(folder: Location) -> Location:
    """Rename a damaged checkpoint to damaged-..., which is listed no more."""
    target = folder.parent / f"{_DAMAGED}{folder.name}"
    Storage.of(folder).move_folder(str(folder), str(target))
    return target


def delete_folder(folder: Location) -> None:
    """Delete a checkpoint; a crash in the middle leaves no half of one that counts."""
    storage = Storage.of(folder)
    if isinstance(folder, Url):
        storage.remove(str(folder / DESCRIPTION))
        storage.remove_folder(str(folder))
    else:
        shutil.rmtree(folder.rename(folder.with_name(f"{_ASIDE}{folder.name}")))


def delete_leftovers(parent: Location) -> None:
    """Delete what a crash left half-written or half-deleted; only for the run's sole writer."""
    for leftover in _leftovers(parent):
        Storage.of(leftover).remove_folder(str(leftover))


def _leftovers(parent: Location) -> Iterator[Location]:
    if isinstance(parent, Path):
        yield from (path for path in parent.glob(f"{_ASIDE}*") if _NAME.fullmatch(path.name.removeprefix(_ASIDE)))
    else:
        yield from (parent / name for name, files in _files_in(parent).items() if DESCRIPTION not in files)


def _files_in(parent: Url) -> dict[str, set[str]]:
    """Return the files of each checkpoint's folder in a store, those without a description included."""
    found: dict[str, set[str]] = {}
    storage = Storage.of(parent)
    try:
        for path, _ in storage.list_files(str(parent)) if storage.exists(str(parent)) else ():
            folder, _, file = path.partition("/")
            if _NAME.fullmatch(folder):
                found.setdefault(folder, set()).add(file)
    except OSError as error:
        raise CheckpointError(str(parent), str(error), "a store that answers", "mend that and run it again") from error
    return found


def _replace_folder(aside: Path, target: Path) -> None:
    if target.exists():
        # A damaged one of the same step: a folder cannot be renamed over one that is not empty.
        shutil.rmtree(target)
    aside.rename(target)
    sync_folder(target.parent)
