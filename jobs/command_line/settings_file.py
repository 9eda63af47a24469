"""A YAML settings file: its values, and the line of each."""

import difflib
import math
from pathlib import Path as FilePath
from typing import Any

import yaml

from jobs.command_line import yaml_scalars
from jobs.command_line.mistakes import Mistake, Path, cut, sentence


class UnusableFileError(Exception):
    """A file without any settings to check; the argument is the mistake's text."""


class SettingsFile:
    """The settings of one file.

    Attributes:
        name: The file's name as the user gave it.
        values: Nested dicts, lists and scalars; numbers by YAML 1.2.
        mistakes: What is wrong with single lines; the rest of the file is in `values` all the same.
    """

    def __init__(self, name: str) -> None:
        """Read a file.

        Raises:
            UnusableFileError: It cannot be read, is no YAML, is empty, or is no mapping.
        """
        self.name = name
        self.mistakes: list[Mistake] = []
        self._lines: dict[Path, int] = {}
        root = _compose(name, _read(name))
        if root is None:
            raise UnusableFileError(
                sentence(
                    name,
                    "an empty file",
                    "settings such as 'output: FOLDER'",
                    "fill it, or leave out --config",
                )
            )
        if not isinstance(root, yaml.MappingNode):
            raise UnusableFileError(
                sentence(
                    f"{name}:{root.start_mark.line + 1}",
                    f"a {_kind(root)} at the top",
                    "settings such as 'output: FOLDER'",
                    "write a colon and a space after each name",
                )
            )
        self.values: dict[str, Any] = self._value(root, (), ())

    def line(self, path: Path) -> int | None:
        """Return the line of a setting, counted from 1, or None where the file does not hold it."""
        return self._lines.get(path)

    def place(self, path: Path) -> str:
        """Return the file and the line of a setting, or of the nearest section around it."""
        while path and path not in self._lines:
            path = path[:-1]
        return f"{self.name}:{self._lines[path]}" if path else self.name

    def _value(self, node: yaml.Node, path: Path, above: tuple[yaml.Node, ...]) -> Any:
        if any(node is outer for outer in above):
            return self._mistake(
                node, path, "an alias of the section it is in", "an alias of another one", "write it out"
            )
        match node:
            case yaml.MappingNode():
                return self._mapping(node, path, (*above, node))
            case yaml.SequenceNode():
                return self._sequence(node, path, (*above, node))
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._mistake(key, path, f"a {_kind(key)} as a name", "a text", "write 'name: value'")
                continue
            inner = (*path, key.value)
            if key.value in values:
                first = f"the first is on line {self._lines[inner]}; remove one"
                self._mistake(key, inner, "a second value", "one", first)
                continue
            self._lines[inner] = key.start_mark.line + 1
            values[key.value] = self._value(value, inner, above)
        return values

    def _sequence(self, node: yaml.SequenceNode, path: Path, above: tuple[yaml.Node, ...]) -> list[Any]:
        values = []
        for index, child in enumerate(node.value):
            inner = (*path, str(index))
            self._lines[inner] = child.start_mark.line + 1
            values.append(self._value(child, inner, above))
        return values

    def _scalar(self, node: yaml.Node, path: Path) -> yaml_scalars.Scalar:
        try:
            value = yaml_scalars.tagged(node.tag, node.value)
        except ValueError:
            return self._mistake(
                node,
                path,
                f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')}",
                "a plain value",
                "remove the tag",
            )
        if isinstance(value, float) and not math.isfinite(value):
            return self._mistake(node, path, cut(node.value), "a finite number", "mend it")
        return value

    def _mistake(self, node: yaml.Node, path: Path, found: str, expected: str, remedy: str) -> None:
        line = node.start_mark.line + 1
        where = f"{self.name}:{line}: {'.'.join(path)}" if path else f"{self.name}:{line}"
        self.mistakes.append(Mistake(sentence(where, found, expected, remedy), path, (0, line)))


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "list"
    return "section" if isinstance(node, yaml.MappingNode) else "value"


def _read(name: str) -> str:
    try:
        return FilePath(name).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UnusableFileError(sentence(name, "no such file", "a YAML file", _near_file(name))) from None
    except UnicodeDecodeError as error:
        found = f"a byte at {error.start} that is no UTF-8"
        raise UnusableFileError(sentence(name, found, "a text file in UTF-8", "save it as UTF-8")) from None
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror})"
        raise UnusableFileError(sentence(name, found, "a YAML file", "give --config another file")) from None


def _near_file(name: str) -> str:
    folder = FilePath(name).parent
    if not folder.is_dir():
        return f"there is no folder {folder} either"
    names = sorted(path.name for path in folder.iterdir() if path.suffix in {".yaml", ".yml"})
    near = difflib.get_close_matches(FilePath(name).name, names, n=1)
    return f"did you mean {folder / near[0]}?" if near else "give --config another file"


def _compose(name: str, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml_scalars.Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise UnusableFileError(sentence(where, *_syntax(str(error.problem)))) from None
    except yaml.YAMLError as error:
        raise UnusableFileError(sentence(name, str(error).splitlines()[0], "YAML", "mend it")) from None
    except RecursionError:
        raise UnusableFileError(sentence(name, "hundreds of nested lists", "settings", "mend it")) from None


def _syntax(problem: str) -> tuple[str, str, str]:
    """Return what was found, what was expected and the remedy for a problem PyYAML names."""
    if "'\\t'" in problem:
        return "a tab", "spaces", "indent with spaces"
    if "mapping values are not allowed" in problem:
        return (
            "a second colon or a wrong indent",
            "one 'name: value' a line",
            "indent it like its neighbours, or quote it",
        )
    if "found another document" in problem or "single document" in problem:
        return "a second document (---)", "one", "remove the line ---"
    return f"no YAML ({problem})", "YAML", "quote texts that hold special signs"
