"""Which files a source of text consists of, how each is packed, and what it is called in a corpus.

A file's name is its path below the folder it was found under, with "/" on every system. Names, not places,
enter shards and digests: the same files elsewhere make the same corpus.
"""

import os
import posixpath
import re
import sysconfig
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from gpt_core.counted import counted
from gpt_core.documents.file_columns import Compression, FileColumns, FileKind, Format, SourceFile
from gpt_core.errors import CorpusError
from gpt_core.storage import Storage, is_url

_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_MIDI_SUFFIXES = (".mid", ".midi")
# What a folder is searched for; a file that is named, or that a glob matches, is text whatever its suffix.
_TEXT_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in [
        "txt",
        "text",
        "md",
        "markdown",
        "rst",
        "tex",
        "html",
        "htm",
        "xml",
        "csv",
        "tsv",
        "py",
        "pyi",
        "c",
        "h",
        "cc",
        "cpp",
        "hpp",
        "rs",
        "go",
        "java",
        "js",
        "ts",
        "sh",
        "sql",
        "toml",
        "yaml",
        "yml",
        "ini",
        "cfg",
        "log",
    ]
)


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """One named source as the user describes it.

    ``paths`` are files, folders, globs ("*", "?", "[...]" within a name, "**" across folders) or URLs; "$STDLIB" is
    Python's own library, "~" the home folder. ``exclude`` are globs on names; one without "/" matches at any depth.
    ``separator`` cuts text files into documents; without one each is a document. Of kind "midi", folders are searched
    for .mid and .midi files, and every file is taken for one.
    """

    name: str
    paths: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    weight: float = 1.0
    text_field: str = "text"
    separator: str | None = None
    kind: Literal["text", "midi"] = "text"


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source by name, and how many others its folders hold, by their suffixes."""

    files: FileColumns
    ignored: Counter[str]


def list_files(spec: SourceSpec) -> list[SourceFile]:
    """Return the files of a source, sorted by name.

    Raises:
        CorpusError: A path does not exist, matches nothing or cannot be read, or two files would bear one name.
    """
    return list(find_files(spec).files)


def find_files(spec: SourceSpec) -> Listing:
    """Like ``list_files``, and count the files of folders that were passed over for their suffix."""
    search = _Search(spec)
    for path in spec.paths:
        with _unreadable_named(spec, path):
            search.add_path(path)
    return Listing(search.columns(), search.ignored)


class _Search:
    """Collects the files of a source path by path."""

    def __init__(self, spec: SourceSpec) -> None:
        self._spec = spec
        self._excluded = [_glob_pattern(glob if "/" in glob else f"**/{glob}") for glob in spec.exclude]
        self._kinds: dict[tuple[str, str, Compression | None], int] = {}
        self._numbers, self._sizes, self._times = array("i"), array("q"), array("q")
        self._names: list[str] = []
        self.ignored = Counter[str]()

    def add_path(self, path: str) -> None:
        """Take the files of one path; there is at least one, or the path is a mistake."""
        num_names, num_ignored = len(self._names), self.ignored.total()
        root, found, is_searched = self._below(_expanded(path))
        for name, num_bytes, changed_ns in found:
            suffixes = _suffixes(name)
            if any(pattern.fullmatch(name) for pattern in self._excluded):
                continue
            if is_searched and not _is_known(name, suffixes[0], self._spec.kind):
                self.ignored[posixpath.splitext(name)[1]] += 1
            else:
                self._numbers.append(self._kinds.setdefault((root, *suffixes), len(self._kinds)))
                self._names.append(name)
                self._sizes.append(num_bytes)
                self._times.append(changed_ns)
        if len(self._names) == num_names:
            raise _nothing_found(self._spec, path, self.ignored.total() - num_ignored)

    def columns(self) -> FileColumns:
        """Return the files by name, each once."""
        for place in chain((root for root, *_ in self._kinds), self._names):
            if not place.isascii():
                self._check_name(place)
        kept = list(self._kept_rows())
        kinds = [self._kind(*key) for key in self._kinds]
        numbers, sizes, times = (np.array(column)[kept] for column in (self._numbers, self._sizes, self._times))
        return FileColumns(kinds, numbers.astype(np.int32), [self._names[row] for row in kept], sizes, times)

    def _kept_rows(self) -> Iterator[int]:
        """Yield the files by name; two different ones of one name would be confused in a trace."""
        names, roots = self._names, [root for root, *_ in self._kinds]
        previous = None
        for row in sorted(self._distinct_rows(), key=names.__getitem__):
            if previous is None or names[previous] != names[row]:
                yield row
            elif roots[self._numbers[previous]] != roots[self._numbers[row]]:
                raise CorpusError(
                    f"source {self._spec.name!r}",
                    f"two files called {names[row]}, under {roots[self._numbers[previous]]} and "
                    f"{roots[self._numbers[row]]}",
                    "one name for each file of a source",
                    "name their common folder, or make them two sources",
                )
            previous = row

    def _distinct_rows(self) -> Iterable[int]:
        """Return one row for each place; where paths overlap, one place is found below several roots."""
        roots = [root for root, *_ in self._kinds]
        if len(set(roots)) == 1:
            return range(len(self._names))  # names tell places apart: no million of whole paths is held
        storages, first_rows = [Storage.of(root) for root in roots], dict[str, int]()
        for row, (number, name) in enumerate(zip(self._numbers, self._names, strict=True)):
            first_rows.setdefault(storages[number].join(name), row)
        return first_rows.values()

    def _kind(self, root: str, suffix: str, compression: Compression | None) -> FileKind:
        spec = self._spec
        kind = "midi" if spec.kind == "midi" else _FORMATS.get(suffix, "text")
        return FileKind(spec.name, root, kind, compression, spec.text_field, spec.separator)

    def _below(self, path: str) -> tuple[str, Iterable[tuple[str, int, int]], bool]:
        """Return the root of one path, its files (name, bytes, time of change), and whether it is a folder."""
        storage = Storage.of(path)
        if storage.is_file(path):
            root, name = _split(path)
            return root, [(name, storage.num_bytes(path), storage.changed_ns(path))], False
        if storage.exists(path):
            return path, storage.list_stats(path), True
        if re.search(r"[*?\[]", path):
            return *_matching(path), False
        raise CorpusError(
            f"source {self._spec.name!r}", f"nothing at {path}", "a file, folder or glob", "check the path"
        )

    def _check_name(self, place: str) -> None:
        """Refuse a name that is no UTF-8: neither a shard nor the manifest could hold it."""
        try:
            place.encode("utf-8")
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"source {self._spec.name!r}",
                f"a file name that is no UTF-8, {os.fsencode(place)!r}",
                "names in UTF-8",
                "rename the file, or exclude it",
            ) from error


@contextmanager
def _unreadable_named(spec: SourceSpec, path: str) -> Iterator[None]:
    """Turn an error of the disk or the store into one that says which place cannot be listed."""
    try:
        yield
    except OSError as error:
        raise CorpusError(
            f"source {spec.name!r}",
            f"{error.strerror or error} at {error.filename or path}",
            "files and folders that this user can read",
            "make it readable, or name other paths",
        ) from error


def _expanded(path: str) -> str:
    path = path.replace("$STDLIB", sysconfig.get_path("stdlib"))
    if is_url(path):
        return path.rstrip("/")
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - resolve() would follow links into other names


def _split(path: str) -> tuple[str, str]:
    """Return the folder and the name of a path or URL; the folder of "memory://name" is "memory://"."""
    scheme, sign, inner = path.rpartition("://")
    folder, slash, name = inner.rpartition("/")
    return scheme + sign + (folder or slash), name


def _matching(path: str) -> tuple[str, Iterator[tuple[str, int, int]]]:
    """Return the last folder before a glob's first wildcard, and the files below it that match.

    Folders are listed as deep as the glob goes.
    """
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
    root, _ = _split(fixed)
    glob = path[len(root) :].lstrip("/")
    pattern, storage = _glob_pattern(glob), Storage.of(root)
    max_parts = None if "**" in glob else glob.count("/") + 1
    found = storage.list_stats(root, max_parts) if storage.exists(root) else iter(())
    return root, (file for file in found if pattern.fullmatch(file[0]))


def _suffixes(name: str) -> tuple[str, Compression | None]:
    stem, suffix = posixpath.splitext(name.lower())
    compression = _COMPRESSIONS.get(suffix)
    return (posixpath.splitext(stem)[1], compression) if compression else (suffix, None)


def counts_rows(name: str) -> bool:
    """Return whether places in a file of this name are rows, not bytes."""
    return _FORMATS.get(_suffixes(name)[0]) in {"parquet", "arrow"}


def place_in(name: str, start: int) -> str:
    """Return for people where in a file a record starts."""
    return f"{name}, {'row' if counts_rows(name) else 'byte'} {start}"


def _is_known(name: str, suffix: str, kind: str) -> bool:
    """Return whether a folder's file is taken: visible, and with a suffix of text or data."""
    if name.startswith(".") or "/." in name:
        return False
    return suffix in _MIDI_SUFFIXES if kind == "midi" else suffix in _FORMATS or suffix in _TEXT_SUFFIXES


def _glob_pattern(glob: str) -> re.Pattern[str]:
    """Translate a glob: "**/" is any number of folders, the other wildcards stay within a name.

    Raises:
        CorpusError: A range within brackets ends before it begins, or a "!" in them is alone.
    """
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", glob)
    try:
        return re.compile("".join(meaning.get(part) or _literal(part) for part in parts), re.DOTALL)
    except re.error as error:
        raise CorpusError(
            f"glob {glob!r}", error.msg, "brackets such as [a-z] or [!0-9]", "correct the glob"
        ) from error


def _literal(part: str) -> str:
    if not (part.startswith("[") and part.endswith("]")):
        return re.escape(part)
    inner = part[1:-1].replace("\\", "\\\\").replace("[", "\\[")
    return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"


def _nothing_found(spec: SourceSpec, path: str, num_ignored: int) -> CorpusError:
    ignored = f"{counted(num_ignored, 'file')}, none of a known suffix," if num_ignored else "no file"
    return CorpusError(
        f"source {spec.name!r}",
        f"{ignored} at {path} after exclusions",
        "text, .jsonl, .parquet or .arrow files, plain, .gz or .zst",
        "check the path and the excludes, or name files of other suffixes by a glob",
    )
