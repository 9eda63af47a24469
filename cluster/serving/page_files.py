"""The files of the page: as the service sends them, and as one HTML file with everything inside.

The page is plain HTML, CSS and JavaScript modules in ``cluster/serving/page``. Its modules import one
another by single-line ``import {a, b} from "./name.js"`` and export declarations alone, and no two
have a top-level name in common; so they can be put one behind the other into one script.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("page")
_INDEX = "index.html"
_STYLE = "style.css"
_SCRIPT = "main.js"
_ICON = "icon.svg"
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|let|class)\b)", re.MULTILINE)
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_NOTHING_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'"
HEADERS = {
    "Content-Security-Policy": (
        f"{_NOTHING_ELSE}; frame-ancestors 'none'; "
        "script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Sent with every file of the page: it loads from, and speaks to, the service it came from alone."""


@dataclass(frozen=True, slots=True)
class FileOfPage:
    """One file as it is sent."""

    content: bytes
    media_type: str


def read_page() -> dict[str, FileOfPage]:
    """Return the files of the page by the paths they are served at."""
    return {
        "/" if file.name == _INDEX else f"/page/{file.name}": FileOfPage(file.read_bytes(), _MEDIA_TYPES[file.suffix])
        for file in sorted(FOLDER.iterdir())
        if file.suffix in _MEDIA_TYPES
    }


def page_in_one_file(recorded: dict[str, Any]) -> str:
    """Return the page as one HTML text that needs no server and fetches nothing.

    Args:
        recorded: What the page shows instead of asking a service.
    """
    style, script = _text(_STYLE), joined_script()
    icon = base64.b64encode((FOLDER / _ICON).read_bytes()).decode("ascii")
    data = json.dumps(recorded, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    policy = f"{_NOTHING_ELSE}; script-src {_source_hash(script)}; style-src {_source_hash(style)}; img-src data:"
    replacements = {
        "<!-- policy -->": f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f'<link rel="icon" href="/page/{_ICON}">': f'<link rel="icon" href="data:image/svg+xml;base64,{icon}">',
        f'<link rel="stylesheet" href="/page/{_STYLE}">': f"<style>{style}</style>",
        f'<script type="module" src="/page/{_SCRIPT}"></script>': f'<script type="module">{script}</script>',
        "<!-- recorded -->": f'<script type="application/json" id="recorded">{data}</script>',
    }
    page = _text(_INDEX)
    for place, text in replacements.items():
        assert page.count(place) == 1, place
        page = page.replace(place, text)
    return page


def joined_script() -> str:
    """Return all modules of the page as one, each behind those it imports."""
    done: dict[str, str] = {}
    _add_module(_SCRIPT, done)
    return "\n".join(done.values())


def _add_module(name: str, done: dict[str, str]) -> None:
    if name in done:
        return
    text = _text(name)
    for imported in _IMPORT.findall(text):
        _add_module(imported, done)
    done[name] = _EXPORT.sub("", _IMPORT.sub("", text))


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _source_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
