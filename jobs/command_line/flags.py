"""Command-line flags: ``--section.field VALUE``, read by what the setting accepts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from jobs.command_line import yaml_scalars
from jobs.command_line.mistakes import Mistake, Path, cut, sentence
from jobs.command_line.schema import Node, Schema

_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


@dataclass(slots=True)
class Flag:
    """One flag as typed, with the words after it; `rank` is its place on the command line."""

    typed: str
    name: str
    values: list[str]
    rank: int

    @property
    def negated(self) -> bool:
        """True for --no-x."""
        return self.name.startswith("no-")

    @property
    def path(self) -> Path:
        """Names from the root to the setting, as typed."""
        return tuple(self.name.removeprefix("no-").split("."))


class Flags:
    """The words after a job's name.

    Attributes:
        config: File named by --config.
        settings: Value of each path, in the order given.
        given: The flag behind each of these paths.
        mistakes: Words that say nothing, and values that cannot be read; collected, not raised.
    """

    def __init__(self, argv: list[str], schema: Schema) -> None:
        self.config: str | None = None
        self.settings: dict[Path, Any] = {}
        self.given: dict[Path, Flag] = {}
        self.mistakes: list[Mistake] = []
        self._schema = schema
        for flag in self._split(argv):
            if flag.name == "config":
                self._take_config(flag)
            else:
                self._take_setting(flag)

    def _split(self, argv: list[str]) -> list[Flag]:
        """Group words into flags and the values that follow them."""
        flags: list[Flag] = []
        for rank, word in enumerate(argv):
            if word.startswith("--"):
                typed, has_value, value = word.partition("=")
                flags.append(Flag(typed, typed[2:], [value] if has_value else [], rank))
            elif flags:
                flags[-1].values.append(word)
            else:
                text = sentence(repr(word), "a word before any flag", "--section.field VALUE", "put a flag before it")
                self.mistakes.append(Mistake(text, (), (1, rank)))
        return flags

    def _mistake(self, flag: Flag, found: str, expected: str, remedy: str) -> None:
        text = sentence(flag.typed, found, expected, remedy)
        self.mistakes.append(Mistake(text, self._known_path(flag), (1, flag.rank)))

    def _take_config(self, flag: Flag) -> None:
        if self.config is not None:
            self._mistake(flag, "a second file", "one", "put what both hold into one")
        elif len(flag.values) != 1:
            self._mistake(flag, f"{len(flag.values) or 'no'} values", "one file", "write --config FILE")
        elif not flag.values[0]:
            self._mistake(flag, "an empty name", "one file", "write --config FILE")
        else:
            self.config = flag.values[0]

    def _known_path(self, flag: Flag) -> Path:
        """Return the setting a flag names; dashes in names may stand for underscores."""
        dashed = tuple(name.replace("-", "_") for name in flag.path)
        return flag.path if self._schema.find(flag.path) else dashed

    def _take_setting(self, flag: Flag) -> None:
        path = self._known_path(flag)
        node = self._schema.find(path)
        if node is None:
            near = self._schema.nearest(path)
            self._mistake(flag, "no such setting", "a known one", f"did you mean --{near}?" if near else "remove it")
            return
        kinds = self._schema.kinds(node)
        if flag.negated and (flag.values or "boolean" not in kinds):
            self._mistake(flag, "--no-", "it alone, before a true-or-false setting", f"write --{'.'.join(path)} VALUE")
            return
        if "boolean" in kinds and not flag.values:
            flag.values.append("false" if flag.negated else "true")
        take, grows = (self._list, {path}) if "array" in kinds else (self._single, set())
        for place, value in self._spread(path, take(flag, path, node), node):
            if any(other[: len(place)] == place and other not in grows for other in self.given):
                self._mistake(flag, "a second value", self._schema.describe(path, node), "give the flag once")
            self.settings[place] = value
            self.given[place] = flag

    def _spread(self, path: Path, value: Any, node: Node) -> Iterator[tuple[Path, Any]]:
        """Yield the single settings of a section given as a mapping, as if each had its own flag."""
        if isinstance(value, dict) and self._schema.section(node):
            for name, inner in value.items():
                yield from self._spread((*path, name), inner, self._schema.child(node, name) or {})
        else:
            yield path, value

    def _single(self, flag: Flag, path: Path, node: Node) -> Any:
        """Return the value of a flag that takes one."""
        expected = self._schema.describe(path, node)
        if len(flag.values) != 1:
            return self._mistake(flag, f"{len(flag.values) or 'no'} values", expected, "give one value")
        if "object" in self._schema.kinds(node):
            return self._literal(flag, flag.values[0], node)
        return self._scalar(flag, flag.values[0], node)

    def _list(self, flag: Flag, path: Path, node: Node) -> Any:
        """Return the list so far with this flag's values at its end, each a word or a YAML list."""
        if not flag.values:
            return self._mistake(flag, "no value", self._schema.describe(path, node), "write [] for an empty list")
        values: list[Any] = list(self.settings.get(path) or [])
        for text in flag.values:
            if _is_list(text):
                values.extend(self._literal(flag, text, node) or [])
            elif text == "null" and "null" in self._schema.kinds(node):
                return None
            else:
                values.append(self._entry(flag, text, node))
        return values

    def _entry(self, flag: Flag, text: str, node: Node) -> Any:
        """Return one word as an entry of a list."""
        entry = self._schema.child(node, "0") or {}
        take = self._literal if "object" in self._schema.kinds(entry) else self._scalar
        return take(flag, text, entry)

    def _scalar(self, flag: Flag, text: str, node: Node) -> Any:
        """Return a word as a number, true, false or null where the setting takes such, else as text."""
        kinds = self._schema.kinds(node)
        value = yaml_scalars.plain(text)
        kind = _TYPES[type(value)]
        fits = not kinds or kind in kinds or (kind == "integer" and "number" in kinds)
        if "string" in kinds and (not fits or not text):
            return text
        if isinstance(value, float) and not math.isfinite(value):
            return self._mistake(flag, cut(text), "a finite number", "mend it")
        return value

    def _literal(self, flag: Flag, text: str, node: Node) -> Any:
        """Return a YAML list or mapping; its plain words are read as words of the command line are."""
        try:
            return self._literal_value(flag, yaml.compose(text, Loader=yaml_scalars.Loader), node)
        except (yaml.YAMLError, RecursionError):
            return self._mistake(flag, f"no YAML: {text}", "a list [a, b] or a mapping {a: b}", "close each bracket")

    def _literal_value(self, flag: Flag, literal: yaml.Node | None, node: Node | None) -> Any:
        child = self._schema.child
        match literal:
            case yaml.SequenceNode():
                return [self._literal_value(flag, entry, child(node or {}, "0")) for entry in literal.value]
            case yaml.MappingNode():
                pairs = self._named(flag, literal)
                return {key: self._literal_value(flag, value, child(node or {}, key)) for key, value in pairs}
            case yaml.ScalarNode(style=None):
                return self._scalar(flag, literal.value, node or {})
            case yaml.ScalarNode():
                return literal.value
        return None

    def _named(self, flag: Flag, mapping: yaml.MappingNode) -> list[tuple[str, yaml.Node]]:
        """Return a mapping's names and nodes; report a name that is none, and one given twice."""
        pairs: dict[str, yaml.Node] = {}
        for key, value in mapping.value:
            if not isinstance(key, yaml.ScalarNode):
                self._mistake(flag, "a list or mapping as a name", "a text", "write {name: value}")
            elif key.value in pairs:
                self._mistake(flag, f"a second value of {key.value}", "one", "remove one")
            else:
                pairs[key.value] = value
        return list(pairs.items())


def _is_list(text: str) -> bool:
    """Tell a YAML list, closed or not, from a glob such as [0-9]*.txt."""
    return text.startswith("[") and (text.endswith("]") or text.count("[") != text.count("]"))
