"""JSON files that prove themselves: written atomically, with the SHA-256 of their own content inside.

The commit point of evaluations and generated datasets: where the file is, the result is whole.
"""

import json
from typing import Any

from gpt_core.digests import canonical_json, sha256_hex
from gpt_core.errors import CorpusError
from gpt_core.storage import Location, Storage


def write(path: str | Location, content: dict[str, Any]) -> None:
    """Write the content and its digest to a path or URL, atomically."""
    text = json.dumps({**content, "digest": _digest(content)}, indent=1, allow_nan=False) + "\n"
    Storage.of(path).write_atomically(str(path), lambda file: file.write(text.encode()))


def read(path: str | Location) -> dict[str, Any] | None:
    """Return the content without its digest, None where there is no such file.

    Raises:
        CorpusError: If a bit of it is not as it was written.
    """
    try:
        with Storage.of(path).open_read(str(path)) as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        content = json.loads(data)
        is_whole = content.pop("digest") == _digest(content)
    except (ValueError, KeyError, AttributeError, TypeError):
        content, is_whole = {}, False
    if not is_whole:
        raise CorpusError(
            str(path),
            "content that does not match its digest",
            "the file as it was written",
            "delete it and run again",
        )
    return content


def _digest(content: dict[str, Any]) -> str:
    return sha256_hex([canonical_json(content)])
