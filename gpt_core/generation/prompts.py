"""Prompt files: what `herd generate` completes, row by row, and what it sets aside.

txt: a prompt a line. jsonl: {"prompt": ..., optional "id" and "sampling"}. parquet and Arrow: columns of
these names. mid: the piece to continue, as performance events. Plain, .gz or .zst, local or by URL. A row that
cannot be used becomes a RejectedPrompt with its file, row and reason; it never stops the job.

The driver scans the files once and cuts them into ranges; each worker reads its own range again.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from gpt_core.documents.source_files import SourceFile
from gpt_core.errors import CorpusError, UserError
from gpt_core.generation.prompt_files import RawRow, list_prompt_files, read_rows
from gpt_core.generation.request import Sampling, sampling_with

_COLUMNS = ("prompt", "id", "sampling")
_ID_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row to complete; `id` keys its random draws and is unique in the job."""

    id: str
    text: str
    sampling: Sampling
    file: str
    line: int
    own_sampling: str = ""
    """What the row itself says of sampling."""


@dataclass(frozen=True, slots=True)
class RejectedPrompt:
    """One row set aside: its file, its line (or row of a table) from 1, and why."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class PromptRange:
    """Consecutive rows of one file, the input of one shard.

    Attributes:
        file: The file's place in the list of files.
        start: Where the first row begins, as ``prompt_files.RawRow`` says.
        first_line: The first row's number.
        num_lines: Rows of the range, those that are no prompts included.
        repeated: Numbers of rows whose id stood before.
        digest: Of the prompts, so that a file that changes under the job is noticed.
    """

    file: int
    start: int
    first_line: int
    num_lines: int
    repeated: tuple[int, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class PromptScan:
    """What the prompt files hold; no prompt itself."""

    files: tuple[SourceFile, ...]
    ranges: tuple[PromptRange, ...]
    rejects: tuple[RejectedPrompt, ...]
    num_prompts: int

    @property
    def digest(self) -> str:
        """One SHA-256 over ids, texts and own sampling of all prompts, in order, and over what is set aside."""
        parts = [*(cut.digest for cut in self.ranges), repr(self.rejects)]
        return hashlib.sha256("".join(parts).encode("utf-8", "backslashreplace")).hexdigest()


def scan_prompts(paths: tuple[str, ...], sampling: Sampling, prompts_per_range: int) -> PromptScan:
    """Read all prompts once, cut them into ranges of one file each, and find the rows that are none.

    A row without an id gets FILE:LINE, so that its completion does not depend on other rows. Holds one
    digest an id in memory, no text.

    Raises:
        CorpusError: A file is missing, of an unknown format, or a table of other columns.
    """
    files = tuple(list_prompt_files(paths))
    seen: set[bytes] = set()
    ranges: list[PromptRange] = []
    rejects: list[RejectedPrompt] = []
    num_prompts = 0
    for index, file in enumerate(files):
        cut = _Cut(index, file, seen, prompts_per_range)
        for line, row in _rows(file, sampling):
            if rejected := cut.add(line, row):
                rejects.append(rejected)
        ranges += cut.close()
        num_prompts += cut.num_prompts
    return PromptScan(files, tuple(ranges), tuple(rejects), num_prompts)


def read_range(files: Sequence[SourceFile], cut: PromptRange, sampling: Sampling) -> list[Prompt]:
    """Return the prompts of a range, as the scan saw them.

    Raises:
        CorpusError: They are no longer those of the scan.
    """
    file = files[cut.file]
    rows = islice(_rows(file, sampling, cut.start, cut.first_line), cut.num_lines)
    prompts = [row for line, row in rows if isinstance(row, Prompt) and line.number not in cut.repeated]
    if _digest(prompts) != cut.digest:
        where = f"{file.path}, rows {cut.first_line} to {cut.first_line + cut.num_lines - 1}"
        raise CorpusError(where, "other prompts than at the start", "a file at rest", "run the same command again")
    return prompts


class _Cut:
    """Cuts one file into ranges as its rows go by."""

    def __init__(self, index: int, file: SourceFile, seen: set[bytes], prompts_per_range: int) -> None:
        self._index, self._file, self._seen, self._most = index, file, seen, prompts_per_range
        self._ranges: list[PromptRange] = []
        self._first: RawRow | None = None
        self._last_line = 0
        self._prompts: list[Prompt] = []
        self._repeated: list[int] = []
        self.num_prompts = 0

    def add(self, line: RawRow, row: Prompt | str | None) -> RejectedPrompt | None:
        """Take the next row and return it if it is to be set aside; None is a blank one."""
        if self._first is None:
            self._first = line
        self._last_line = line.number
        reason = row if isinstance(row, str) else None
        if isinstance(row, Prompt):
            if self._is_repeated(row):
                self._repeated.append(line.number)
                reason = f"found the id {row.id!r} a second time; expected an id of its own"
            else:
                self._prompts.append(row)
        if len(self._prompts) == self._most:
            self._end_range()
        return RejectedPrompt(self._file.name, line.number, reason) if reason else None

    def close(self) -> list[PromptRange]:
        """Return the ranges of the file."""
        if self._prompts:
            self._end_range()
        return self._ranges

    def _is_repeated(self, row: Prompt) -> bool:
        key = hashlib.blake2b(row.id.encode(), digest_size=_ID_DIGEST_BYTES).digest()
        if key in self._seen:
            return True
        self._seen.add(key)
        return False

    def _end_range(self) -> None:
        assert self._first is not None
        first, repeated = self._first, tuple(self._repeated)
        num_lines = self._last_line - first.number + 1
        digest = _digest(self._prompts)
        self._ranges.append(PromptRange(self._index, first.start, first.number, num_lines, repeated, digest))
        self.num_prompts += len(self._prompts)
        self._first, self._prompts, self._repeated = None, [], []


def _digest(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(repr((prompt.id, prompt.text, prompt.own_sampling)).encode())
    return digest.hexdigest()


def _rows(
    file: SourceFile, sampling: Sampling, start: int = 0, number: int = 1
) -> Iterator[tuple[RawRow, Prompt | str | None]]:
    """Yield each row with its prompt, the reason why it is none, or None where it is blank."""
    for line in read_rows(file, _COLUMNS, start, number):
        try:
            yield line, line.fault or _prompt(file, line, sampling)
        except UnicodeDecodeError as error:
            byte = f"byte {error.object[error.start]:#04x} at offset {error.start}"
            yield line, f"found {byte} of the row; expected valid UTF-8"
        except UserError as error:
            yield line, str(error)


def _prompt(file: SourceFile, line: RawRow, sampling: Sampling) -> Prompt | str | None:
    row = line.content
    if isinstance(row, bytes):
        text = row.rstrip(b"\r").decode("utf-8")
        if not text.strip():
            return None
        if file.format == "text":
            return Prompt(f"{file.name}:{line.number}", text, sampling, file.name, line.number)
        try:
            row = orjson.loads(text)
        except ValueError as error:
            return f"found broken JSON ({error}); expected one JSON object on the line"
    if fault := _fault(row):
        return fault
    assert isinstance(row, dict)
    return _prompt_of_object(file, line, row, sampling)


def _fault(row: Any) -> str | None:
    """Return why an object is no prompt."""
    if not isinstance(row, dict):
        return f"found {_shown(row)}; expected an object with a text in 'prompt'"
    if unknown := sorted(row.keys() - set(_COLUMNS)):
        return f"found the field {unknown[0]!r}; expected no others than {', '.join(_COLUMNS)}"
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        found = _shown(prompt) if "prompt" in row else "no field 'prompt'"
        return f"found {found}; expected a text of at least one character in 'prompt'"
    row_id = row.get("id")
    if isinstance(row_id, bool) or not isinstance(row_id, str | int | None):
        return f"found {_shown(row_id)} in 'id'; expected a text or a whole number"
    return None


def _prompt_of_object(file: SourceFile, line: RawRow, row: dict[str, Any], sampling: Sampling) -> Prompt | str:
    changes = row.get("sampling")
    if isinstance(changes, str) and not isinstance(line.content, bytes):  # a table's column of JSON texts
        try:
            changes = orjson.loads(changes)
        except ValueError as error:
            return f"found broken JSON ({error}) in 'sampling'; expected an object of sampling settings"
    if not isinstance(changes, dict | None):
        return f"found {_shown(changes)} in 'sampling'; expected an object of sampling settings"
    row_id = row.get("id")
    name = f"{file.name}:{line.number}" if row_id is None else str(row_id)
    own = repr(sorted((changes or {}).items()))
    return Prompt(name, row["prompt"], sampling_with(sampling, changes or {}), file.name, line.number, own)


def _shown(value: Any) -> str:
    return repr(value)[:100]
