"""What to do about a value of the wrong kind: the words after the last semicolon of a mistake."""

import difflib
import re
from typing import Any

from jobs.command_line import yaml_scalars
from jobs.command_line.mistakes import show
from jobs.command_line.schema import Node, Schema, choices

_NULLS = ("none", "off", "no")
_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_YES_NO = {"yes": "true", "on": "true", "no": "false", "off": "false"}


def remedy(schema: Schema, node: Node, value: Any) -> str:
    """Return how to write what was probably meant, else what the default is."""
    kinds = schema.kinds(node)
    alternatives = schema.alternatives(node)
    match value:
        case str():
            meant = _for_text(value, kinds) or _nearest_choice(value, alternatives) or _as_list(value, schema, node)
        case float() if value.is_integer() and "integer" in kinds:
            meant = f"write {int(value)}"
        case int() | float() if any(map(_is_free_text, alternatives)):
            meant = f'write "{show(value)}" in quotes'
        case _:
            meant = None
    return meant or _default(node)


def _for_text(value: str, kinds: set[str]) -> str | None:
    if "null" in kinds and value.lower() in _NULLS:
        return "write null"
    if "boolean" in kinds and value.lower() in _YES_NO:
        return f"write {_YES_NO[value.lower()]}"
    number = value.replace("_", "")
    number = number.replace(",", "" if _THOUSANDS.fullmatch(number) else ".")
    if ("integer" in kinds and _is_a(int, number)) or ("number" in kinds and _is_a(float, number)):
        return f"write {number} without quotes" if number == value else f"write {number}"
    return None


def _is_a(kind: type, number: str) -> bool:
    value = yaml_scalars.plain(number)
    return isinstance(value, kind) or (kind is float and isinstance(value, int) and not isinstance(value, bool))


def _as_list(value: str, schema: Schema, node: Node) -> str | None:
    entry = schema.child(node, "0") or {}
    is_word = value and value.lower() not in _NULLS
    return f"write [{value}]" if is_word and any(map(_is_free_text, schema.alternatives(entry))) else None


def _nearest_choice(value: str, alternatives: list[Node]) -> str | None:
    known = [choice for kind in alternatives for choice in choices(kind)]
    near = difflib.get_close_matches(value, known, n=1)
    return f"did you mean {near[0]}?" if near else None


def _is_free_text(kind: Node) -> bool:
    return kind.get("type") == "string" and not choices(kind)


def _default(node: Node) -> str:
    if "default" not in node or isinstance(node["default"], dict):
        return "give such a value"
    return f"the default is {yaml_scalars.written(node['default'])}"
