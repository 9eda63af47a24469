"""Plain YAML values read by the rules of YAML 1.2.

PyYAML follows YAML 1.1, where ``3e-4`` is a text, ``no`` is false and ``12:30`` is 750.
The patterns are those of the YAML 1.2.2 core schema (section 10.3.2).
"""

import re

import yaml

_PREFIX = "tag:yaml.org,2002:"
_DIGITS = "{1,1000}"  # Python neither reads nor prints integers of more than 4300 digits
_PATTERNS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": rf"[-+]?[0-9]{_DIGITS}|0o[0-7]{_DIGITS}|0x[0-9a-fA-F]{_DIGITS}",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}

Scalar = str | int | float | bool | None


class Loader(yaml.SafeLoader):
    """Composes YAML nodes whose plain scalars carry YAML 1.2 tags."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own class attribute)


for _name, _pattern in _PATTERNS.items():
    Loader.add_implicit_resolver(_PREFIX + _name, re.compile(f"(?:{_pattern})\\Z"), None)


def plain(text: str) -> Scalar:
    """Return the value of an unquoted scalar."""
    kind = next((name for name, pattern in _PATTERNS.items() if re.fullmatch(pattern, text)), "str")
    return tagged(_PREFIX + kind, text)


def tagged(tag: str, text: str) -> Scalar:
    """Return the value of a scalar with a tag of the core schema.

    Raises:
        ValueError: The tag is none of the core schema's, or the text is not of its kind.
    """
    match tag.removeprefix(_PREFIX):
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
        case "float":
            return float(re.sub(r"\.(?=[in])", "", text.lower()))  # ".inf" is "inf" to Python
    raise ValueError(f"the tag {tag}")


def written(value: object) -> str:
    """Return a value as it is written in a settings file."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value != "" else '""'
