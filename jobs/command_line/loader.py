"""Settings from defaults, a YAML file and flags, the later before the earlier."""

import json
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gpt_core.errors import SettingsError
from jobs.command_line.flags import Flags
from jobs.command_line.mistakes import Mistake, Path, cut, refusal, sentence, show
from jobs.command_line.remedies import remedy
from jobs.command_line.schema import Node, Schema
from jobs.command_line.settings_file import SettingsFile, UnusableFileError

Model = TypeVar("Model", bound=BaseModel)


def load(model: type[Model], argv: list[str], program: str = "herd") -> Model:
    """Return the settings a command line and the file it names ask for.

    Values are strict: true is no number, "12" is no number, 1.0 is no whole number. A
    section given in part keeps its other defaults, also those of a default instance.

    Raises:
        SettingsMistakesError: With every mistake of the file and of the flags.
    """
    return _Load(model, argv, program).result()


class _Load(Generic[Model]):
    """One load, which knows where each value came from, so that each mistake can name its place."""

    def __init__(self, model: type[Model], argv: list[str], program: str) -> None:
        self.model = model
        self.program = program
        self.schema = Schema(model)
        self.flags = Flags(argv, self.schema)
        self.mistakes = self.flags.mistakes
        self.file = self._read_file()

    def result(self) -> Model:
        """Return the settings, or raise all mistakes."""
        values = self._values()
        settings = None if values is None else self._validated(values)
        if settings is None or self.mistakes:
            raise refusal(self.program, self.mistakes)
        return settings

    def _read_file(self) -> SettingsFile | None:
        if self.flags.config is None:
            return None
        try:
            file = SettingsFile(self.flags.config)
        except UnusableFileError as error:
            self.mistakes.append(Mistake(str(error), (), (0, 0)))
            return None
        self.mistakes.extend(file.mistakes)
        return file

    def _values(self) -> dict[str, Any] | None:
        """Return what file and flags say together, or None where the file says nothing to go by."""
        if self.flags.config is not None and self.file is None:
            return None
        values = self._with_defaults(self.file.values if self.file else {}, self.schema.root)
        for path, value in self.flags.settings.items():
            self._put(values, path, value)
        return values

    def _with_defaults(self, values: dict[str, Any], node: Node) -> dict[str, Any]:
        """Complete each section given in part by the default instance it would have had."""
        filled = dict(values)
        for name, value in values.items():
            child = self.schema.child(node, name)
            if child is None or not isinstance(value, dict) or self.schema.section(child) is None:
                continue
            filled[name] = self._with_defaults(_over(child.get("default"), value), child)
        return filled

    def _put(self, values: Any, path: Path, value: Any) -> None:
        """Set one flag's value, or report that there is no section or list to set it in."""
        node: Node | None = self.schema.root
        for depth, name in enumerate(path):
            node = self.schema.child(node or {}, name)
            key = _key(values, name)
            if key is None:
                self._report_place(path, depth, values)
                return
            if depth == len(path) - 1:
                values[key] = value
                return
            if values[key] is None:
                values[key] = _made((node or {}).get("default"))
            values = values[key]

    def _report_place(self, path: Path, depth: int, values: Any) -> None:
        """Report a flag that goes past the end of a list, or into a value that has no inside."""
        found, expected, remedy = show(values), f"a section as {'.'.join(path[:depth])}", "write it as one"
        if isinstance(values, list) and path[depth].isdecimal():
            found, expected = f"index {cut(path[depth])}", f"0 to {len(values)}" if values else "0"
            remedy = "count entries from 0"
        text = sentence(self.flags.given[path].typed, found, expected, remedy)
        self.mistakes.append(Mistake(text, path, self._rank(path)))

    def _validated(self, values: dict[str, Any]) -> Model | None:
        """Return the settings, or collect what is wrong with them.

        JSON mode, because strict Python mode refuses a list for a tuple and a text for a path.
        """
        try:
            return self.model.model_validate_json(json.dumps(values), strict=self._strict())
        except ValidationError as error:
            if error.errors(include_url=False)[0]["type"] == "json_invalid":
                return self._unreadable(values)
            found: dict[Path, list[ErrorDetails]] = {}
            for detail in error.errors(include_url=False):
                found.setdefault(_misfit_path(detail, self._path(detail, values)), []).append(detail)
        known = {mistake.path for mistake in self.mistakes if mistake.path}
        for path, details in found.items():
            if path not in known:
                self.mistakes.append(Mistake(self._text(path, details), path, self._rank(path)))
        return None

    def _unreadable(self, values: dict[str, Any]) -> None:
        """Report what no settings file can say: a text with a broken character, else too deep a nesting."""
        broken = list(_broken_texts(values, ()))
        for path in broken:
            text = sentence(self._where(path), "a text that is no UTF-8", "a text in UTF-8", "rename or retype it")
            self.mistakes.append(Mistake(text, path, self._rank(path)))
        if not broken:
            text = sentence(self.program, "hundreds of nested lists or sections", "settings", "mend it")
            self.mistakes.append(Mistake(text))

    def _strict(self) -> bool | None:
        """Be strict, except to a strict model, whose fields may exempt themselves from it."""
        return None if self.model.model_config.get("strict") else True

    def _path(self, detail: ErrorDetails, values: Any) -> Path:
        """Return the path of an error without pydantic's marks for members of a union."""
        path: Path = ()
        node: Node | None = self.schema.root
        for part in detail["loc"]:
            name = str(part)
            child = self.schema.child(node or {}, name)
            here = isinstance(values, dict) and name in values
            if isinstance(part, int) and isinstance(values, list):
                if child is None:  # an entry of a list of fixed length: the list is what is wrong
                    break
                values = values[part]
            elif here or (child is not None and isinstance(values, dict)):
                values = values.get(name)
            else:
                continue
            path, node = (*path, name), child
        return path

    def _text(self, path: Path, details: list[ErrorDetails]) -> str:
        """Return the line for all of pydantic's errors about one setting."""
        where = self._where(path)
        for detail in details:
            if misfit := _misfit(detail):
                return sentence(where, misfit.found, misfit.expected, misfit.remedy)
            if detail["type"] in ("value_error", "assertion_error"):
                return f"{where}: {detail.get('ctx', {}).get('error', detail['msg'])}"
            if detail["type"] == "extra_forbidden":
                near = self.schema.nearest(path)
                return sentence(
                    where, "no such setting", "a known one", f"did you mean {near}?" if near else "remove it"
                )
            if detail["type"] == "missing" and path[-1:] == detail["loc"][-1:]:
                return self._missing(path, where)
        return self._unfit(path, where, details[0])

    def _missing(self, path: Path, where: str) -> str:
        node = self.schema.find(path) or {}
        expected = self.schema.describe(path, node)
        flag = f"give --{'.'.join(path)}{'.NAME' if self.schema.section(node) else ''} VALUE"
        return sentence(
            where, "nothing", expected, f"set it here or {flag}" if self.file else f"{flag} or --config FILE"
        )

    def _unfit(self, path: Path, where: str, detail: ErrorDetails) -> str:
        """Return the line for a value of the wrong kind or out of its limits."""
        node = self.schema.find(path)
        if node is None:
            return sentence(where, show(detail["input"]), detail["msg"], "mend it")
        expected = self.schema.describe(path, node)
        return sentence(where, show(detail["input"]), expected, remedy(self.schema, node, detail["input"]))

    def _where(self, path: Path) -> str:
        """Return the place of a value: its flag, or its line, or the nearest section's line, and its name."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.flags.given:
                flag = self.flags.given[path[:end]]
                inner = ".".join(path[len(flag.path) :])
                return f"{flag.typed}: {inner}" if inner else flag.typed
        below = list(
            dict.fromkeys(flag.typed for given, flag in self.flags.given.items() if given[: len(path)] == path)
        )
        name = ".".join(path)
        if self.file is None:
            place = ", ".join(below) if below and path else self.program
            return f"{place}: {name}" if name else place
        place = self.file.place(path)
        if below and path:
            place = f"{place} with {', '.join(below)}"
        return f"{place}: {name}" if name else place

    def _rank(self, path: Path) -> tuple[int, int]:
        """Return the place in the report: by line of the file, then by flag, then the rest."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.flags.given:
                return (1, self.flags.given[path[:end]].rank)
            if self.file and (line := self.file.line(path[:end])):
                return (0, line)
        return (2, 0)


def _misfit(detail: ErrorDetails) -> SettingsError | None:
    """Return the SettingsError that a validator gave pydantic as a ValueError's reason, if it did."""
    reasons = getattr(detail.get("ctx", {}).get("error"), "args", ())
    return next((reason for reason in reasons if isinstance(reason, SettingsError)), None)


def _misfit_path(detail: ErrorDetails, path: Path) -> Path:
    """Return the path of the setting such an error names; a validator of a section may name it from outside."""
    misfit = _misfit(detail)
    names = tuple(misfit.where.split(".")) if misfit else ()
    return (*path, *(names[1:] if path and names[:1] == path[-1:] else names))


def _over(default: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return a section's default instance, if it has one, with the given values over it."""
    merged = dict(default) if isinstance(default, dict) else {}
    for name, value in given.items():
        inner = merged.get(name)
        merged[name] = _over(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _key(values: Any, name: str) -> str | int | None:
    """Return the key or index under which a name stands, made where it is the next one; None where it cannot be."""
    if isinstance(values, dict):
        values.setdefault(name)
        return name
    if not isinstance(values, list) or name not in map(str, range(len(values) + 1)):
        return None
    if int(name) == len(values):
        values.append(None)
    return int(name)


def _made(default: Any) -> Any:
    """Return a new section or list with the values of its default."""
    return json.loads(json.dumps(default)) if isinstance(default, (dict, list)) else {}


def _broken_texts(values: Any, path: Path) -> Iterator[Path]:
    """Yield the paths of texts and names with half a surrogate pair, which bytes that are no UTF-8 become."""
    match values:
        case str() if values.encode("utf-8", "replace").decode("utf-8") != values:
            yield path
        case dict():
            for name, value in values.items():
                yield from _broken_texts(name, (*path, name))
                yield from _broken_texts(value, (*path, name))
        case list():
            for index, value in enumerate(values):
                yield from _broken_texts(value, (*path, str(index)))
