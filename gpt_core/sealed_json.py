"""JSON files that prove themselves: written atomically, with the SHA-256 of their own content inside.

The commit point of evaluations and generated datasets: where the file is, the result is whole.
"""

import json
import os
from pathlib import Path
from typing import Any

from gpt_core.digests import canonical_json, sha256_hex
from gpt_core.errors import CorpusError


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the content and its digest: temporary file, fsync, rename."""
    sealed = {**content, "digest": _digest(content)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        json.dump(sealed, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> dict[str, Any] | None:
    """Return the content without its digest, None where there is no such file.

    Raises:
        CorpusError: If a bit of it is not as it was written.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        digest = content.pop("digest")
    except (ValueError, KeyError, AttributeError):
        digest, content = None, {}
    if digest != _digest(content):
        raise CorpusError(
            str(path),
            "content that does not match its digest",
            "the file as it was written",
            "delete it and run again",
        )
    return content


def _digest(content: dict[str, Any]) -> str:
    return sha256_hex([canonical_json(content)])
