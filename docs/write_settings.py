"""Write docs/settings.md from the settings models: ``python -m docs.write_settings``.

A test holds the page to what this would write.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from jobs import cli
from jobs.command_line.schema import Node, Schema
from jobs.command_line.yaml_scalars import written

PAGE = Path(__file__).with_name("settings.md")
_SHARED = ("cluster", "tracking")
_STAGES = {"tokenize": "tokenize", "pretrain": "pretrain", "evaluate": "evaluate", "generate": "generate"}
_HEAD = """# Settings

Made from `gpt_core/settings/` by `python -m docs.write_settings`; `herd JOB --help` prints the same.

A setting is a flag, `--section.field VALUE`, or a line of the YAML file named by `--config`, in nested sections.
Flags win over the file, the file over the defaults. Types are strict: `true` is no number, `3e-4` is one, and a name
that is not in these tables is refused. Names carry their units: `_tokens`, `_bytes`, `_seconds`, `_steps`,
`_sequences`. `null` turns an optional setting off. A flag of a list takes several values.
A relative path is one from the folder where the command is run, in the YAML file as well.

What the environment sets: `MLFLOW_TRACKING_URI` (where `tracking.uri` is null), `RAY_ADDRESS` (where
`cluster.address` is null), `RAY_AUTH_MODE` and `RAY_AUTH_TOKEN` (see [security](security.md)), `HERD_API_KEY`
(the key of `herd serve`), and the usual variables of S3 and Google Cloud. Secrets are never settings."""


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    shared: dict[str, str] = {}
    for job in cli.job_names():
        module = importlib.import_module(f"jobs.{cli._MODULES[job]}")
        if model := getattr(module, "SETTINGS", None):
            parts.append("\n\n".join(_job(job, str(module.__doc__).partition("\n")[0], model, shared)))
    common = ["## Every job that runs on Ray", *shared.values()]
    return "\n\n".join([parts[0], *common, *parts[1:]]) + "\n"


def _job(job: str, description: str, model: type[BaseModel], shared: dict[str, str]) -> Iterator[str]:
    yield f"## herd {job}"
    yield description
    for path, doc, table in _sections(Schema(model), job):
        if path in _SHARED:
            shared.setdefault(path, _titled(path, doc, table))
        else:
            yield _titled(path, doc, table)


def _titled(path: str, doc: str, table: str) -> str:
    title = f"`{path}`: {doc}\n\n" if path else ""
    return title + table


def _sections(schema: Schema, job: str) -> Iterator[tuple[str, str, str]]:
    """Yield each section's path, its text and its table, the outer before the inner."""
    queue: list[tuple[str, Node, Any]] = [("", schema.root, None)]
    while queue:
        path, node, default = queue.pop(0)
        section = schema.section(node) or {"properties": {}}
        doc = str(node.get("description") or section.get("description", "")).partition("\n")[0]
        if job == "pipeline" and path in _STAGES:
            yield path, doc, f"As in [herd {path}](#herd-{path}); what it reads and writes follows from `output`."
            continue
        rows, inner = _rows(schema, path, section, default)
        if rows:
            yield path, doc, "\n".join(["| setting | accepts | default | meaning |", "|---|---|---|---|", *rows])
        queue = inner + queue


def _rows(schema: Schema, path: str, section: Node, default: Any) -> tuple[list[str], list[tuple[str, Node, Any]]]:
    """Return a section's rows and the sections in it."""
    rows: list[str] = []
    inner: list[tuple[str, Node, Any]] = []
    for name, child in section["properties"].items():
        value = default[name] if isinstance(default, dict) and name in default else child.get("default")
        below = f"{path}.{name}" if path else name
        if schema.section(child):
            inner.append((below, child, value))
            continue
        required = name in section.get("required", ()) and value is None
        rows.append(_row(schema, below, child, "required" if required else f"`{written(value)}`"))
        if entry := schema.entries(child):
            inner.append((f"{below}.N", entry, None))
    return rows, inner


def _row(schema: Schema, path: str, node: Node, state: str) -> str:
    kind = schema.describe(tuple(path.split(".")), node).removeprefix("a ")
    text = " ".join(str(node.get("description", "")).split())
    cells = (f"`{path}`", kind, state, text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
