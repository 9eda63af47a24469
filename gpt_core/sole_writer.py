"""One writer a folder: a lock that the kernel drops with the process that holds it.

A worker whose driver was killed may live a second longer than the driver. Its successor waits for
it here before it looks for the newest checkpoint, so that no two processes ever write one run.
The lock is ``flock``'s: it holds between machines where the file system carries it (NFS does).
"""

import errno
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt_core.errors import ResourceError

_POLL_SECONDS = 0.1
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def sole_writer(folder: Path | str, name: str, patience_seconds: float) -> Iterator[None]:
    """Hold the lock file ``name`` of a folder while the body runs; waits for another holder's end.

    Leaves the file there: deleting it would let two processes lock two files of one name.

    Raises:
        ResourceError: Another process still holds it after ``patience_seconds``, or the folder
            cannot be written.
    """
    path = Path(folder) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ResourceError(
            str(path), error.strerror or str(error), "a folder that can be written", "mend it and run it again"
        ) from error
    try:
        _lock(file, path, patience_seconds)
        with suppress(OSError):  # on a full disk the name is missing from a later message, no more
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(file)


def _lock(file: int, path: Path, patience_seconds: float) -> None:
    give_up = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up:
                raise _held(file, path) from None
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(f"{path}: this file system has no locks; run one job at a time here", stacklevel=4)
            return
        else:
            return


def _held(file: int, path: Path) -> ResourceError:
    holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
    return ResourceError(
        str(path.parent),
        f"{holder} at work in it",
        "one job at a time in an output folder",
        "wait for it, stop it, or choose another output folder",
    )
