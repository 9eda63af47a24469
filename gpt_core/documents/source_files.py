"""Which files a source of text consists of, how each is packed, and what it is called in a corpus.

A file's name is its path below the folder it was found under, with "/" on every system. Names, not places,
enter shards and digests: the same files elsewhere make the same corpus.
"""

import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from gpt_core.errors import CorpusError
from gpt_core.storage import Storage, is_url

Format = Literal["text", "jsonl", "parquet", "arrow", "midi"]
Compression = Literal["gzip", "zstd"]

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
class SourceFile:
    """One input file: where it lies, what it is called, and how documents are found in it."""

    source: str
    root: str
    name: str
    num_bytes: int
    format: Format
    compression: Compression | None = None
    text_field: str = "text"
    separator: str | None = None
    changed_ns: int = field(default=0, compare=False)
    """When it was last changed (``Storage.list_stats``); a hint that its contents may be others."""

    @property
    def path(self) -> str:
        """The path or URL to open."""
        return Storage.of(self.root).join(self.name)

    @property
    def divisible(self) -> bool:
        """Whether several shards may share the file: not a compressed stream, not a file that is one document."""
        whole = self.format == "midi" or (self.format == "text" and self.separator is None)
        return self.compression is None and not whole


@dataclass(slots=True)
class Listing:
    """The files of a source by name, and how many others its folders hold."""

    files: list[SourceFile] = field(default_factory=list)
    num_ignored: int = 0


def list_files(spec: SourceSpec) -> list[SourceFile]:
    """Return the files of a source, sorted by name.

    Raises:
        CorpusError: A path does not exist, matches nothing or cannot be read, or two files would bear one name.
    """
    return find_files(spec).files


def find_files(spec: SourceSpec) -> Listing:
    """Like ``list_files``, and count the files of folders that were passed over for their suffix."""
    listing = Listing()
    excluded = [_glob_pattern(glob if "/" in glob else f"**/{glob}") for glob in spec.exclude]
    for path in spec.paths:
        before = len(listing.files) + listing.num_ignored
        with _unreadable_named(spec, path):
            for file in _below(spec, _expanded(path), listing):
                if not any(pattern.fullmatch(file.name) for pattern in excluded):
                    listing.files.append(file)
        if len(listing.files) + listing.num_ignored == before or not listing.files:
            raise _nothing_found(spec, path, listing)
    listing.files = _without_repeats(spec, listing.files)
    return listing


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


def _below(spec: SourceSpec, path: str, listing: Listing) -> Iterator[SourceFile]:
    """Yield the files of one path of the source."""
    storage = Storage.of(path)
    if storage.is_file(path):
        root, _, name = path.rpartition("/")
        yield _source_file(spec, root or "/", name, storage.num_bytes(path), storage.changed_ns(path))
    elif storage.exists(path):
        for name, *stats in storage.list_stats(path):
            if _is_known(name, spec.kind):
                yield _source_file(spec, path, name, *stats)
            else:
                listing.num_ignored += 1
    elif re.search(r"[*?\[]", path):
        yield from _matching(spec, path)
    else:
        raise CorpusError(f"source {spec.name!r}", f"nothing at {path}", "a file, folder or glob", "check the path")


def _matching(spec: SourceSpec, path: str) -> Iterator[SourceFile]:
    """Yield the files that a glob matches, named from the last folder before its first wildcard."""
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
    root = fixed.rpartition("/")[0] or "/"
    pattern = _glob_pattern(path[len(root) :].lstrip("/"))
    storage = Storage.of(root)
    if storage.exists(root):
        for name, *stats in storage.list_stats(root):
            if pattern.fullmatch(name):
                yield _source_file(spec, root, name, *stats)


def _source_file(spec: SourceSpec, root: str, name: str, num_bytes: int, changed_ns: int) -> SourceFile:
    suffix, compression = _suffixes(name)
    kind = "midi" if spec.kind == "midi" else _FORMATS.get(suffix, "text")
    reading = (kind, compression, spec.text_field, spec.separator)
    return SourceFile(spec.name, root, name, num_bytes, *reading, changed_ns)


def _suffixes(name: str) -> tuple[str, Compression | None]:
    path = PurePosixPath(name.lower())
    compression = _COMPRESSIONS.get(path.suffix)
    return (path.with_suffix("").suffix, compression) if compression else (path.suffix, None)


def _is_known(name: str, kind: str) -> bool:
    """Return whether a folder's file is taken: visible, and with a suffix of text or data."""
    if any(part.startswith(".") for part in name.split("/")):
        return False
    suffix, _ = _suffixes(name)
    if kind == "midi":
        return suffix in _MIDI_SUFFIXES
    return suffix in _FORMATS or suffix in _TEXT_SUFFIXES


def _glob_pattern(glob: str) -> re.Pattern[str]:
    """Translate a glob: "**/" is any number of folders, the other wildcards stay within a name."""
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", glob)
    return re.compile("".join(meaning.get(part) or _literal(part) for part in parts), re.DOTALL)


def _literal(part: str) -> str:
    if not (part.startswith("[") and part.endswith("]")):
        return re.escape(part)
    inner = part[1:-1].replace("\\", "\\\\").replace("[", "\\[")
    return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"


def _without_repeats(spec: SourceSpec, files: Iterable[SourceFile]) -> list[SourceFile]:
    """Return the files by name, each once; two different ones of one name would be confused in a trace."""
    by_name: dict[str, SourceFile] = {}
    seen: set[str] = set()
    for file in files:
        if file.path in seen:
            continue
        seen.add(file.path)
        if other := by_name.get(file.name):
            raise CorpusError(
                f"source {spec.name!r}",
                f"two files called {file.name}, under {other.root} and {file.root}",
                "one name for each file of a source",
                "name their common folder, or make them two sources",
            )
        by_name[file.name] = file
    return [by_name[name] for name in sorted(by_name)]


def _nothing_found(spec: SourceSpec, path: str, listing: Listing) -> CorpusError:
    ignored = f"{listing.num_ignored} files, none of a known suffix," if listing.num_ignored else "no file"
    return CorpusError(
        f"source {spec.name!r}",
        f"{ignored} at {path} after exclusions",
        "text, .jsonl, .parquet or .arrow files, plain, .gz or .zst",
        "check the path and the excludes, or name files of other suffixes by a glob",
    )
