"""Files of this machine and of object stores behind one small set of calls.

A place is a local path or a URL. ``s3://`` and ``gs://`` go through pyarrow's own clients, every other scheme
through fsspec. Whoever reads a file sees it whole: a local file gets its name after its bytes are on the disk,
a remote object appears when its upload is complete.
"""

import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import pyarrow as pa
import pyarrow.fs

from gpt_core.errors import CorpusError, ResourceError

_SPOOL_BYTES = 16 << 20
_COPY_BYTES = 16 << 20  # a request each
_S3_ATTEMPTS = 10  # with pauses that double: about a minute of "SlowDown" or of broken connections
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "gs": ("STORAGE_EMULATOR_HOST",),
    "gcs": ("STORAGE_EMULATOR_HOST",),
}


@contextmanager
def full_disk_named(place: str, needed: str) -> Iterator[None]:
    """Turn "no space left" in the block into an error that says where and how much is needed.

    Raises:
        ResourceError: In place of an OSError for a full disk or quota.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        disk = tempfile.gettempdir() if is_url(place) else place
        folder = Path(disk).absolute()
        there = next(filter(Path.exists, [folder, *folder.parents]))
        raise ResourceError(
            disk,
            f"{error.strerror} ({shutil.disk_usage(there).free} bytes free)",
            needed,
            "make room or choose another output, then run the same command again: finished shards are kept",
        ) from error


def is_url(place: str) -> bool:
    """Return whether a place is a URL rather than a path of this machine."""
    return "://" in place


@dataclass(frozen=True, slots=True)
class Url:
    """A folder or file in a store, with those parts of a ``Path`` that code for either kind needs."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}/{name}")

    @property
    def name(self) -> str:
        """Its last part."""
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> "Url":
        """The folder it lies in."""
        return Url(self.text.rpartition("/")[0])


Location = Path | Url


def location(place: str | Location) -> Location:
    """Return a place as a path, or as a URL where it is one: ``Path`` would make a local folder of it."""
    if isinstance(place, str) and is_url(place):
        return Url(place.rstrip("/"))
    return place if isinstance(place, Url) else Path(place)


def local_folder(output: str, beside: str | None = None) -> Path:
    """Return where files about an output lie that no store can hold, such as journals and locks.

    That is the output folder itself, or where the output is a URL, a folder of its own in ``beside``, or runs/ here.
    The name of that ends in a digest: "s3://b/exp/1" and "s3://b/exp-1" are two outputs.
    """
    if not is_url(output):
        return Path(output)
    url = output.rstrip("/")
    readable, digest = re.sub(r"[^A-Za-z0-9.-]+", "-", url), hashlib.sha256(url.encode()).hexdigest()[:8]
    return Path(beside or "runs", f"{readable}-{digest}").absolute()


class Storage:
    """A folder, local or remote; paths handed to the methods are whole, as ``join`` makes them."""

    def __init__(self, root: str) -> None:
        self.root = re.sub("(?<![:/])/+$", "", root) or "/"  # but not those of "memory://"

    @classmethod
    def of(cls, place: str | Location) -> Self:
        """Return the storage whose root is this folder or file; nothing is opened yet."""
        return cls(str(place))

    def join(self, *parts: str) -> str:
        """Return the path or URL of something below the root."""
        return self.root + "/" * (not self.root.endswith("/")) + "/".join(parts)

    def exists(self, path: str) -> bool:
        """Return whether there is a file or folder of this name."""
        if not is_url(path):
            return Path(path).exists()
        return self._information(path).type != pyarrow.fs.FileType.NotFound

    def is_file(self, path: str) -> bool:
        """Return whether there is a file, not a folder, of this name."""
        if not is_url(path):
            return Path(path).is_file()
        return self._information(path).type == pyarrow.fs.FileType.File

    def num_bytes(self, path: str) -> int:
        """Return the size of a file; FileNotFoundError where there is none."""
        if not is_url(path):
            return Path(path).stat().st_size
        size = self._information(path).size
        if size is None:
            raise FileNotFoundError(path)
        return size

    def changed_ns(self, path: str) -> int:
        """Return when a file was last changed, see ``list_stats``; FileNotFoundError where there is none."""
        if not is_url(path):
            return Path(path).stat().st_ctime_ns
        return self._information(path).mtime_ns or 0

    def list_files(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield name (relative, with "/") and size of every file below a folder, in no particular order."""
        for name, num_bytes, _ in self.list_stats(folder):
            yield name, num_bytes

    def list_stats(self, folder: str, max_parts: int | None = None) -> Iterator[tuple[str, int, int]]:
        """Like ``list_files``, and yield the nanosecond of the last change, 0 where a remote store does not say.

        That of a local file is its ctime: unlike the time of modification, no one can set it back. Links are followed,
        to folders too; one that leads nowhere counts as a file, so that its reader says so.

        Args:
            folder: Where to begin.
            max_parts: Folders are left out whose files would have more parts in their names; in a remote store, which
                lists either a folder or all below it, a number above 1 leaves none out.
        """
        if not is_url(folder):
            yield from _walk(folder, "", max_parts)
            return
        filesystem, inner = open_filesystem(folder)
        for found in filesystem.get_file_info(pyarrow.fs.FileSelector(inner, recursive=max_parts != 1)):
            if found.type == pyarrow.fs.FileType.File:
                yield found.path[len(inner) :].lstrip("/"), found.size, found.mtime_ns or 0

    def open_read(self, path: str) -> BinaryIO:
        """Open a file for reading at any position; read(n) may be called in any size."""
        if not is_url(path):
            return Path(path).open("rb")
        filesystem, inner = open_filesystem(path)
        return cast("BinaryIO", filesystem.open_input_file(inner))

    def write_atomically(self, path: str, write: Callable[[BinaryIO], Any]) -> None:
        """Make a file whose bytes ``write`` writes; until it is whole and durable, nothing bears its name.

        Local: a temporary file ``.NAME.*.tmp`` beside it, fsync, rename, fsync of the folder; it is removed when
        ``write`` raises. Remote: one upload after ``write`` has returned.
        """
        if is_url(path):
            _upload(path, write)
        else:
            _write_local(Path(path), write)

    @contextmanager
    def on_disk(self, path: str) -> Iterator[Path]:
        """Yield a local file itself, and of a remote one a copy that is there while the block runs."""
        if not is_url(path):
            yield Path(path)
            return
        with self.open_read(path) as source, tempfile.NamedTemporaryFile(prefix="gpt-herd-") as copy:
            shutil.copyfileobj(source, copy, _COPY_BYTES)
            copy.flush()
            yield Path(copy.name)

    def remove(self, path: str) -> None:
        """Delete a file if it is there."""
        if not is_url(path):
            Path(path).unlink(missing_ok=True)
        elif self.is_file(path):
            filesystem, inner = open_filesystem(path)
            filesystem.delete_file(inner)

    def remove_folder(self, folder: str) -> None:
        """Delete a folder and all below it, if it is there."""
        if not is_url(folder):
            shutil.rmtree(folder, ignore_errors=True)
        elif self.exists(folder):
            filesystem, inner = open_filesystem(folder)
            with suppress(FileNotFoundError):  # Google's: the files are gone, there was no object for the folder
                filesystem.delete_dir(inner)

    def move_folder(self, folder: str, target: str) -> None:
        """Give a folder another name, in place of what bears it; in a store its files are copied through here."""
        self.remove_folder(target)
        if not is_url(folder):
            Path(folder).rename(target)
            return
        for name, _ in list(self.list_files(folder)):
            with self.open_read(f"{folder}/{name}") as source:
                self.write_atomically(
                    f"{target}/{name}", lambda file, source=source: shutil.copyfileobj(source, file, _COPY_BYTES)
                )
        self.remove_folder(folder)

    def _information(self, url: str) -> pyarrow.fs.FileInfo:
        filesystem, inner = open_filesystem(url)
        return filesystem.get_file_info([inner])[0]


def open_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return pyarrow's file system for a URL, and the URL's path in it.

    ``AWS_ENDPOINT_URL`` (or ``AWS_ENDPOINT_URL_S3``) points ``s3://`` at another server than Amazon's,
    ``STORAGE_EMULATOR_HOST`` points ``gs://`` at one that asks for no credentials.

    Raises:
        CorpusError: No installed client speaks the URL's scheme.
    """
    scheme, _, inner = url.partition("://")
    try:
        if scheme in _ENDPOINTS:
            endpoint = next(filter(None, map(os.environ.get, _ENDPOINTS[scheme])), None)
            return _filesystem(scheme, endpoint), inner.rstrip("/")
        import fsspec.core

        filesystem, inner = fsspec.core.url_to_fs(url)
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), inner.rstrip("/")
    except (ImportError, ValueError, TypeError, pa.ArrowException) as error:
        raise CorpusError(
            f"{scheme}://", str(error), "a scheme that pyarrow or fsspec can open", "install its fsspec package"
        ) from error


@functools.lru_cache(maxsize=8)
def _filesystem(scheme: str, endpoint: str | None) -> pyarrow.fs.FileSystem:
    if scheme == "s3":
        patient = pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS)
        return pyarrow.fs.S3FileSystem(endpoint_override=endpoint, retry_strategy=patient)
    if endpoint:
        kind, _, host = endpoint.rpartition("://")
        return pyarrow.fs.GcsFileSystem(anonymous=True, endpoint_override=host, scheme=kind or "http")
    return pyarrow.fs.GcsFileSystem()


def _walk(
    folder: str, prefix: str, max_parts: int | None, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, int, int]]:
    status = os.stat(folder)  # noqa: PTH116 - a string, for millions of files
    here = (status.st_dev, status.st_ino)
    if here in above:
        return  # a link to a folder that it lies in
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir():
                if max_parts is None or name.count("/") + 1 < max_parts:
                    yield from _walk(entry.path, f"{name}/", max_parts, (*above, here))
            elif entry.is_file() or entry.is_symlink():
                found = entry.stat(follow_symlinks=entry.is_file())
                yield name, found.st_size, found.st_ctime_ns


def _write_local(target: Path, write: Callable[[BinaryIO], Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a local folder durable (a rename alone may be lost with the power)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _upload(url: str, write: Callable[[BinaryIO], Any]) -> None:
    # Spooled first: an error inside `write` must not leave a cut-off object, and pyarrow cannot abort an upload.
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        write(cast("BinaryIO", spool))
        spool.seek(0)
        filesystem, inner = open_filesystem(url)
        if isinstance(filesystem, pyarrow.fs.PyFileSystem):  # object stores need no folders, file systems do
            filesystem.create_dir(inner.rpartition("/")[0], recursive=True)
        with filesystem.open_output_stream(inner, compression=None) as stream:  # never by the name's suffix
            shutil.copyfileobj(spool, stream, 1 << 20)
