"""What a settings model accepts, read from its JSON schema: names, kinds, limits, defaults.

One source for the reading of flags, for the words of messages and for the help text, so
that they cannot disagree with the model.
"""

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from jobs.command_line.mistakes import Path

_UNITS = ("tokens", "bytes", "seconds", "steps", "sequences", "windows", "documents", "prompts")
_LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
Node = dict[str, Any]


class _WithFactories(GenerateJsonSchema):
    """JSON schema that shows the defaults of default factories too."""

    def default_schema(self, schema: Any) -> Node:
        factory = schema.get("default_factory")
        if factory is not None and not schema.get("default_factory_takes_data"):
            schema = {**schema, "default": factory()}
        return super().default_schema(schema)


class Schema:
    """The tree of settings of one model; a node is a JSON schema with its references resolved."""

    def __init__(self, model: type[BaseModel]) -> None:
        whole = model.model_json_schema(schema_generator=_WithFactories)
        self._definitions: dict[str, Node] = whole.get("$defs", {})
        self.root: Node = whole

    def alternatives(self, node: Node) -> list[Node]:
        """Return the kinds of value a node accepts, each resolved, references and unions unfolded."""
        if "$ref" in node:
            return self.alternatives(self._definitions[node["$ref"].rpartition("/")[2]])
        if members := node.get("anyOf") or node.get("oneOf") or node.get("allOf"):
            return [kind for member in members for kind in self.alternatives(member)]
        return [node]

    def kinds(self, node: Node) -> set[str]:
        """Return the JSON types a node accepts; the empty set stands for any."""
        return {kind["type"] for kind in self.alternatives(node) if "type" in kind}

    def child(self, node: Node, name: str) -> Node | None:
        """Return the node of a named setting, list entry or mapping value, or None."""
        for kind in self.alternatives(node):
            if name in kind.get("properties", {}):
                return kind["properties"][name]
            if name.isdecimal() and isinstance(kind.get("items"), dict):
                return kind["items"]
            if isinstance(kind.get("additionalProperties"), dict):
                return kind["additionalProperties"]
        return None

    def find(self, path: Path) -> Node | None:
        """Return the node at a path, or None where the model knows no such setting."""
        node: Node | None = self.root
        for name in path:
            node = None if node is None else self.child(node, name)
        return node

    def section(self, node: Node) -> Node | None:
        """Return the model behind a node, or None where the node is no section."""
        return next((kind for kind in self.alternatives(node) if "properties" in kind), None)

    def entries(self, node: Node) -> Node | None:
        """Return the section each entry of a list must be, or None."""
        items = next((kind["items"] for kind in self.alternatives(node) if "items" in kind), None)
        return self.section(items) if isinstance(items, dict) else None

    def nearest(self, path: Path) -> str | None:
        """Return the known setting that an unknown one was probably meant to be."""
        parent = self.find(path[:-1])
        siblings = self.section(parent) if parent else None
        near = difflib.get_close_matches(path[-1], (siblings or {}).get("properties", {}), n=1)
        if near:
            return ".".join((*path[:-1], near[0]))
        known = [".".join(leaf) for leaf in self._leaves(self.root, ())]
        same = [name for name in known if name.rpartition(".")[2] == path[-1]]
        return next(iter(same or difflib.get_close_matches(".".join(path), known, n=1)), None)

    def _leaves(self, node: Node, path: Path) -> Iterator[Path]:
        for name, child in (self.section(node) or {"properties": {}})["properties"].items():
            yield (*path, name)
            yield from self._leaves(child, (*path, name))

    def describe(self, path: Path, node: Node) -> str:
        """Return what a setting accepts, in words: "a whole number of steps > 0 or null"."""
        unit = next((f" of {unit}" for unit in _UNITS if path and path[-1].endswith(f"_{unit}")), "")
        phrases = [self._phrase(kind, unit) for kind in self.alternatives(node)]
        return " or ".join(dict.fromkeys(phrases))

    def _phrase(self, kind: Node, unit: str) -> str:
        if words := choices(kind):
            return f"one of {', '.join(words)}" if len(words) > 2 else " or ".join(words)
        phrases = {
            "integer": f"a whole number{unit}{_limits(kind)}",
            "number": f"a number{unit}{_limits(kind)}",
            "string": _text_phrase(kind),
            "boolean": "true or false",
            "null": "null",
            "array": self._list_phrase(kind),
            "object": "a section",
        }
        return phrases.get(kind.get("type", ""), "any value")

    def _list_phrase(self, kind: Node) -> str:
        plurals = {"integer": "whole numbers", "number": "numbers", "string": "texts", "object": "sections"}
        items = [kind["items"]] if isinstance(kind.get("items"), dict) else kind.get("prefixItems", [])
        entries = [entry for item in items for entry in self.alternatives(item)]
        types = " or ".join(dict.fromkeys(plurals.get(entry.get("type", ""), "values") for entry in entries))
        least, most = kind.get("minItems"), kind.get("maxItems")
        if least and least == most:
            return f"a list of {least} {types}"
        return f"a list of {types}{f', at least {least}' if least else ''}{f', at most {most}' if most else ''}"


def choices(kind: Node) -> list[str]:
    """Return the words a kind of value is limited to, or none where it is free."""
    return [str(choice) for choice in kind.get("enum", [kind["const"]] if "const" in kind else [])]


def _text_phrase(kind: Node) -> str:
    if "pattern" in kind:
        return f"a text of the form {kind['pattern']}"
    return "a non-empty text" if kind.get("minLength") else "a text"


def _limits(kind: Node) -> str:
    return " and".join(f" {sign} {kind[name]}" for name, sign in _LIMITS.items() if name in kind)
