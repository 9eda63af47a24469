"""What is wrong with a settings file or with flags: all of it at once, a line each."""

from dataclasses import dataclass

from gpt_core.errors import SettingsError

Path = tuple[str, ...]
"""Names from the root to a setting, a list index as its digits: ("sources", "0", "name")."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One line of the report.

    `path` keeps a second report about the same setting away; `rank` puts the lines into the
    order of the file, then of the command line.
    """

    text: str
    path: Path = ()
    rank: tuple[int, int] = (2, 0)


class SettingsMistakesError(SettingsError):
    """Every mistake of one command; the text is a line for each."""

    def __str__(self) -> str:
        return self.remedy


def refusal(program: str, mistakes: list[Mistake]) -> SettingsMistakesError:
    """Return the error that reports all mistakes, and where the settings are explained."""
    lines = [mistake.text for mistake in sorted(mistakes, key=lambda mistake: mistake.rank)]
    lines.append(f"{program} --help explains every setting")
    return SettingsMistakesError(program, f"{len(mistakes)} mistakes", "none", "\n".join(lines))


def sentence(where: str, found: str, expected: str, remedy: str) -> str:
    """Return the text of one mistake, in the form every user error has."""
    return str(SettingsError(where, found, expected, remedy))


def show(value: object) -> str:
    """Return a value as a user would write it in YAML, cut to one short line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {cut(repr(value))}"
        case dict():
            return "a section"
        case list():
            return f"the list {cut(str(value))}"
    return cut(str(value))


def cut(text: str) -> str:
    """Return a text, shortened where it would fill the line."""
    return text if len(text) <= 60 else f"{text[:57]}..."
