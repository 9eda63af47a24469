"""Settings and texts as a run records them: flat, short enough for MLflow, without passwords."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gpt_core.credentials import without_credentials

_MAX_PARAM_CHARACTERS = 6000
_MAX_TAG_CHARACTERS = 5000  # MLflow stores 8,000; some databases hold 5,000


def params_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return nested settings as dotted names and texts, those too long for MLflow cut with a note."""
    return {name: _param(value) for name, value in _flattened(settings)}


def clean(value: object) -> str:
    """Return a value as the text of a tag."""
    text = without_credentials(str(value))
    return _cut(text, _MAX_TAG_CHARACTERS, " ... (cut)")


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _param(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    note = f" ... (cut; {len(text):,} characters in settings.yaml)"
    return _cut(without_credentials(text), _MAX_PARAM_CHARACTERS, note)


def _cut(text: str, limit: int, note: str) -> str:
    return text if len(text) <= limit else text[: limit - len(note)] + note
