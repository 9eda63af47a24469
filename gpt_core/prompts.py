"""Prompt files: what `herd generate` completes, row by row, and what it sets aside.

txt: a prompt a line. jsonl: {"prompt": ..., optional "id" and "sampling"}. A row that cannot be
used becomes a RejectedPrompt with its file, line and reason; it never stops the job.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_core.errors import CorpusError, UserError
from gpt_core.generation import Sampling, sampling_with

_JSON_FIELDS = ("prompt", "id", "sampling")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row to complete; `id` keys its random draws and is unique in the job."""

    id: str
    text: str
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class RejectedPrompt:
    """One row set aside: where it stands and why."""

    file: str
    line: int
    reason: str


def read_prompts(paths: tuple[str, ...], sampling: Sampling) -> tuple[list[Prompt], list[RejectedPrompt]]:
    """Return the usable prompts and the rows set aside, both in the order of files and lines.

    A row without an id gets FILE:LINE, so that its completion does not depend on other rows.

    Raises:
        CorpusError: If a file is missing or of an unknown format.
    """
    prompts: list[Prompt] = []
    rejects: list[RejectedPrompt] = []
    seen: set[str] = set()
    for path in (Path(name) for name in paths):
        for line, row in _rows(path, sampling):
            if isinstance(row, str):
                rejects.append(RejectedPrompt(path.name, line, row))
            elif row.id in seen:
                reason = f"found the id {row.id!r} a second time; expected an id of its own"
                rejects.append(RejectedPrompt(path.name, line, reason))
            else:
                seen.add(row.id)
                prompts.append(row)
    return prompts, rejects


def _rows(path: Path, sampling: Sampling) -> Iterator[tuple[int, Prompt | str]]:
    """Yield (line, the prompt or the reason why it is none); blank lines are passed over."""
    read_row = {".txt": _text_row, ".jsonl": _json_row}.get(path.suffix)
    if read_row is None or not path.is_file():
        found = f"the suffix {path.suffix!r}" if path.is_file() else "no such file"
        raise CorpusError(str(path), found, "a .txt or .jsonl file of prompts", "correct the name")
    with path.open("rb") as file:
        for line, data in enumerate(file, start=1):
            try:
                text = data.rstrip(b"\r\n").decode()
                if text.strip():
                    yield line, read_row(text, f"{path.name}:{line}", sampling)
            except (ValueError, UserError) as error:
                yield line, f"found {error}; expected a prompt in UTF-8"


def _text_row(text: str, row_id: str, sampling: Sampling) -> Prompt:
    return Prompt(row_id, text, sampling)


def _json_row(text: str, row_id: str, sampling: Sampling) -> Prompt:
    row: Any = json.loads(text)
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"]:
        raise ValueError("no string field 'prompt'")  # noqa: TRY004 - caught by _rows
    if unknown := sorted(row.keys() - set(_JSON_FIELDS)):
        raise ValueError(f"the field {unknown[0]!r} (known are {', '.join(_JSON_FIELDS)})")
    own_id = row.get("id", row_id)
    if not isinstance(own_id, str):
        raise ValueError(f"the id {own_id!r}, which is no string")
    return Prompt(own_id, row["prompt"], sampling_with(sampling, row.get("sampling") or {}))
