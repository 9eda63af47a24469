"""Copies of remote shards on this machine's disk: bounded, checked on arrival, shared by the workers of a node.

Used by ``corpus.corpus`` and filled ahead by ``corpus.shard_fetcher``. A copy is named by its digest
and gets the name after its bytes have been checked and are on the disk. Locks are the kernel's: a killed
worker holds none, and what it was fetching is removed by whoever needs the room or fetches it again.
"""

import contextlib
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from gpt_core.errors import CorpusError, ResourceError
from gpt_core.storage import Storage, is_url

DEFAULT_CACHE_BYTES = 16 << 30
_SUFFIX, _PART_SUFFIX = ".arrow", ".part"
_DIGEST = re.compile(r"[0-9a-f]{32}")
_OWN_NAME = re.compile(r"[0-9a-f]{32}\.(arrow|part)")
_READ_BYTES = 4 << 20
_TRIES = 8  # with pauses that double: about half a minute of throttling
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0


@dataclass(frozen=True, slots=True)
class RemoteShard:
    """A shard in an object store; ``digest`` is its xxh3_128 as the manifest has it."""

    url: str
    num_bytes: int
    digest: str


def cache_for(place: str, folder: str | None, max_bytes: int | None) -> "ShardCache | None":
    """Return a cache for the shards of a corpus in an object store; None for a local one, or for None bytes."""
    return ShardCache(folder, max_bytes) if is_url(place) and max_bytes else None


class HeldShard:
    """A copy that stays where it is until it is let go."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self.num_bytes = os.fstat(file).st_size
        self._file = file

    def close(self) -> None:
        """Let the copy go; others may then remove it."""
        os.close(self._file)


class ShardCache:
    """One folder of copies, for any number of processes of one user at a time.

    Args:
        folder: Where copies lie; None takes a folder of this user's among the temporary files.
        max_bytes: Bytes of all copies together, those on their way included.
        pause: Called with the seconds to wait before a download is tried again.

    Raises:
        ResourceError: The folder cannot be made, or is another user's, who could forge copies.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        max_bytes: int = DEFAULT_CACHE_BYTES,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self.folder = Path(folder or _temporary() / f"gpt-herd-shards-{os.getuid()}")
        self.max_bytes = max_bytes
        self._pause = pause
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(self.folder, error.strerror or str(error)) from error
        found = self.folder.stat()
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise _unusable(self.folder, "a folder that others can write into")

    def hold(self, shard: RemoteShard) -> HeldShard | None:
        """Return the shard's copy, fetched first if it is not there; None where there is no room for it.

        Raises:
            CorpusError: The store does not give it, or gives something else, however often it is asked.
        """
        while True:
            held = self._held(self._path(shard))
            if held is not None:
                return held
            if not self._fetch(shard):
                return None

    def has(self, shard: RemoteShard) -> bool:
        """Return whether a copy is there."""
        return self._path(shard).exists()

    def num_bytes(self) -> int:
        """Return the bytes of all copies, those on their way included."""
        return sum(size for _, size, _ in self._copies())

    def _path(self, shard: RemoteShard) -> Path:
        if not _DIGEST.fullmatch(shard.digest):  # a manifest's word, that must lead nowhere else
            raise CorpusError(shard.url, f"the digest {shard.digest!r}", "32 hex digits", "tokenize the corpus again")
        return self.folder / f"{shard.digest}{_SUFFIX}"

    def _held(self, path: Path) -> HeldShard | None:
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if not _is_same(file, path):  # removed just before the lock was taken
            os.close(file)
            return None
        os.utime(file)  # the copy unused for longest is the first to be removed
        return HeldShard(path, file)

    def _fetch(self, shard: RemoteShard) -> bool:
        """Make the copy, or wait for the process that makes it; return False where there is no room."""
        path = self._path(shard)
        turn = path.with_suffix(".fetch")  # not the copy's own file, which its readers lock for as long as they read
        with _locked(turn) as lock:
            if not _is_same(lock, turn):
                return True  # another process has just been at it
            try:
                return path.exists() or self._fetch_alone(shard, path)
            finally:
                turn.unlink(missing_ok=True)

    def _fetch_alone(self, shard: RemoteShard, path: Path) -> bool:
        part = path.with_suffix(_PART_SUFFIX)
        with contextlib.ExitStack() as exits:
            with _locked(self.folder / "lock"):
                file = exits.enter_context(_locked(part))
                if not self._reserve(shard, file):
                    part.unlink(missing_ok=True)
                    return False
            try:
                self._download(shard, file)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            part.replace(path)
        return True

    def _reserve(self, shard: RemoteShard, file: int) -> bool:
        """Remove copies until there is room, and take it: what others see is the whole size from now on."""
        os.ftruncate(file, 0)
        if not self._make_room(shard.num_bytes):
            return False
        try:
            os.posix_fallocate(file, 0, max(shard.num_bytes, 1))
        except OSError:  # the disk is fuller than the cache may become
            return False
        return True

    def _make_room(self, num_bytes: int) -> bool:
        copies = sorted(self._copies())
        excess = sum(size for _, size, _ in copies) + num_bytes - self.max_bytes
        for _, size, path in copies:
            if excess <= 0:
                break
            if _removed(path):
                excess -= size
        return excess <= 0

    def _copies(self) -> Iterator[tuple[int, int, Path]]:
        """Yield when each copy was used last, its bytes and its path."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if _OWN_NAME.fullmatch(entry.name):  # a folder that a user names may hold files of theirs
                    try:
                        found = entry.stat()
                    except FileNotFoundError:
                        continue
                    yield found.st_mtime_ns, found.st_size, Path(entry.path)

    def _download(self, shard: RemoteShard, file: int) -> None:
        seconds = _FIRST_PAUSE_SECONDS
        for last in [False] * (_TRIES - 1) + [True]:
            try:
                found = _copied(shard.url, file, shard.num_bytes)
            except OSError as error:
                found = str(error).splitlines()[0] if str(error) else type(error).__name__
            if found == shard.digest:
                os.fsync(file)
                return
            if last:
                raise CorpusError(
                    shard.url,
                    found,
                    f"{shard.num_bytes} bytes with the digest {shard.digest}",
                    "check the store and its credentials, and run `herd verify` on the corpus",
                )
            self._pause(seconds)
            seconds = min(2 * seconds, _LONGEST_PAUSE_SECONDS)


def _copied(url: str, file: int, num_bytes: int) -> str:
    """Copy an object into the file and return its digest, or what is wrong with its length."""
    digest, position = xxhash.xxh3_128(), 0
    with Storage.of(url).open_read(url) as source, os.fdopen(file, "r+b", closefd=False) as copy:
        copy.seek(0)
        while data := source.read(_READ_BYTES):
            position += len(data)
            if position > num_bytes:
                return f"more than {num_bytes} bytes"
            copy.write(data)
            digest.update(data)
    return digest.hexdigest() if position == num_bytes else f"{position} bytes"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold a file, made if it is not there, for this process alone."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _is_same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _removed(path: Path) -> bool:
    """Remove a copy unless someone holds it, or is fetching it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_same(file, path):
            path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def _temporary() -> Path:
    """Return a folder for large temporary files: /tmp is memory on many machines."""
    on_disk = Path("/var/tmp")  # noqa: S108 - the folder made in it belongs to this user alone
    return on_disk if "TMPDIR" not in os.environ and os.access(on_disk, os.W_OK) else Path(tempfile.gettempdir())


def _unusable(folder: Path, found: str) -> ResourceError:
    return ResourceError(
        "train.cache_folder", f"{found}: {folder}", "a folder that you alone can write", "name another folder"
    )
