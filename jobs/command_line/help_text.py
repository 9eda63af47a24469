"""The help of a job, made from its settings model: one line a setting."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from jobs.command_line.mistakes import Path
from jobs.command_line.schema import Node, Schema
from jobs.command_line.yaml_scalars import written

_VALUES = """values
  texts and numbers   --name VALUE or --name=VALUE; 3e-4 is a number; null turns an optional setting off
  true or false       --name for true, --no-name for false
  lists               --name A B, or --name A --name B, or --name '[A, B]'
  list entries        --name.0.field VALUE, counted from 0
  A YAML file gives the same settings as nested sections; flags win over the file, the file over defaults."""

_OPTIONS = """options
  --config FILE  read settings from a YAML file
  --traceback    show where in the program an error arose
  --help         show this text"""


def render(program: str, description: str, model: type[BaseModel], example: str, argument: str = "") -> str:
    """Return the help of a job.

    Args:
        program: What the user types, such as "herd pretrain".
        description: What the job does, one line.
        model: Its settings; field docstrings become the lines' texts.
        example: Words after the program that ask for the job.
        argument: Name of what may be given before any flag, empty where nothing may.
    """
    usage = " ".join(filter(None, ["usage:", program, argument, "[--config FILE] [--section.field VALUE ...]"]))
    schema = Schema(model)
    sections = [_section(name, doc, rows) for name, doc, rows in _sections(schema, schema.root, (), None)]
    shown = f"example\n  {program} {example}"
    return "\n\n".join([f"{program}: {description}", usage, _OPTIONS, *sections, _VALUES, shown])


def _section(name: str, doc: str, rows: list[tuple[str, str]]) -> str:
    width = max(len(flag) for flag, _ in rows)
    lines = [f"  {flag:<{width}}  {text}" for flag, text in rows]
    return "\n".join([f"{name}: {doc}" if doc else name, *lines])


def _sections(schema: Schema, node: Node, path: Path, default: Any) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Yield each section's name, its text and its settings, the outer before the inner."""
    section = schema.section(node) or {"properties": {}}
    rows: list[tuple[str, str]] = []
    inner: list[tuple[Path, Node, Any]] = []
    for name, child in section["properties"].items():
        value = default[name] if isinstance(default, dict) and name in default else child.get("default")
        below = (*path, name)
        if schema.section(child):
            inner.append((below, child, value))
            continue
        rows.append(
            (
                f"--{'.'.join(below)}",
                _row(schema, below, child, value, required=name in section.get("required", ())),
            )
        )
        if entry := schema.entries(child):
            inner.append(((*below, "N"), entry, None))
    if rows:
        doc = str(node.get("description") or section.get("description", "")).splitlines()
        yield ".".join(path) or "settings", doc[0] if doc and path else "", rows
    for below, child, value in inner:
        yield from _sections(schema, child, below, value)


def _row(schema: Schema, path: Path, node: Node, default: Any, *, required: bool) -> str:
    kind = schema.describe(path, node).removeprefix("a ")
    state = "required" if required and default is None else f"default {written(default)}"
    text = " ".join(str(node.get("description", "")).split())
    return f"{kind}, {state}. {text}".rstrip()
