"""Errors reach the user whole, also from another process."""

import ast
import importlib
import pickle
from pathlib import Path

import pytest

from gpt_core.errors import HerdError, RunFailedError, UserError

ROOT = Path(__file__).parents[2]
FOUR = ("corpus/manifest.json", "a file of 0 bytes", "a manifest", "run herd tokenize again")


def bases_by_class() -> dict[tuple[str, str], set[str]]:
    """Map (module, class) to the names of its bases, for every class of the product, without importing it."""
    found = {}
    for package in ("gpt_core", "cluster", "jobs"):
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                    found[module, node.name] = bases
    return found


def error_classes() -> list[tuple[str, str]]:
    """List every class that derives from HerdError, wherever it is defined."""
    everything = bases_by_class()
    family = {"HerdError"}
    while True:
        grown = family | {name for (_, name), bases in everything.items() if bases & family}
        if grown == family:
            return [(module, name) for module, name in everything if name in family]
        family = grown


@pytest.mark.parametrize(("module", "name"), error_classes())
def test_error_survives_pickling_with_type_message_and_exit_code(module, name):
    error = getattr(importlib.import_module(module), name)(*FOUR)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.args == FOUR
    assert copy.exit_code == error.exit_code


def test_text_says_where_what_was_found_what_was_expected_and_what_to_do():
    assert str(HerdError(*FOUR)) == (
        "corpus/manifest.json: found a file of 0 bytes; expected a manifest; run herd tokenize again"
    )


def test_mistakes_exit_2_and_failed_runs_exit_1():
    assert UserError(*FOUR).exit_code == 2
    assert RunFailedError(*FOUR).exit_code == 1
