"""Rows of task files as texts to be scored: HellaSwag's, LAMBADA's, and sentences with a blank.

Each row becomes one item: one or several options, each a context and its continuation. An item with one option
asks whether the model would say it; one with several, which the model finds likeliest. Contexts and continuations
are those of lm-evaluation-harness's tasks ``hellaswag`` and ``lambada``, so that its scores can be compared.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from gpt_core.tokens.tokenizer import Tokenizer

ItemKind = Literal["hellaswag", "lambada", "cloze"]
ITEM_KINDS: tuple[ItemKind, ...] = ("hellaswag", "lambada", "cloze")


@dataclass(frozen=True, slots=True)
class Wording:
    """How rows become texts.

    Attributes:
        kind: Which rows.
        style: hellaswag: "harness" cleans the texts as lm-evaluation-harness does, "plain" takes them as they stand.
        blank: cloze: what stands where the answer belongs.
    """

    kind: ItemKind
    style: Literal["harness", "plain"] = "harness"
    blank: str = "____"


@dataclass(frozen=True, slots=True)
class Option:
    """A continuation of a context; ``num_characters`` is what the length-normalised score divides by."""

    context: str
    continuation: str
    num_characters: int


@dataclass(frozen=True, slots=True)
class Item:
    """One question; ``gold`` is the right option's index, None where there is one option alone."""

    options: tuple[Option, ...]
    gold: int | None = None


class UnusableRowError(Exception):
    """A row that is no item; its text is the reason, with what was found and expected."""


def parse_item(record: bytes, wording: Wording) -> Item:
    """Return the item of one line of JSON.

    Raises:
        UnusableRowError: The line is no item of this kind.
    """
    row = _row(record)
    return _PARSERS[wording.kind](row, wording)


def tokens_of(option: Option, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Return the ids of context and continuation, and how many of them, at the end, are the continuation's.

    Spaces at the end of the context are encoded with the continuation. An empty context is an end-of-text token.
    """
    spaces = len(option.context) - len(option.context.rstrip())
    context = option.context[: len(option.context) - spaces]
    ids = tokenizer.encode_prompt(option.context + option.continuation).tolist()
    num_context = len(tokenizer.encode_prompt(context)) if context else 0
    return ([] if num_context else [tokenizer.end_of_text]) + ids, len(ids) - num_context


def _row(record: bytes) -> dict[str, Any]:
    try:
        row = orjson.loads(record)
    except ValueError as error:
        raise UnusableRowError(f"found broken JSON ({error}); expected one JSON object on the line") from error
    if not isinstance(row, dict):
        raise UnusableRowError(f"found a JSON {type(row).__name__}; expected an object")
    return {name: value for name, value in row.items() if value is not None}  # tables write absent columns as null


def _hellaswag(row: dict[str, Any], wording: Wording) -> Item:
    endings = _texts(row, "endings")
    gold = _label(row, len(endings))
    if wording.style == "plain":
        context = _text(row, "ctx")
    else:
        context = _clean(_described(row, _joined_context(row)))
        endings = [_clean(ending) for ending in endings]
    return Item(tuple(Option(context, f" {ending}", max(len(ending), 1)) for ending in endings), gold)


def _joined_context(row: dict[str, Any]) -> str:
    # The published rows hold the context whole and in two parts, of which the second begins an ending's sentence.
    if "ctx_a" in row and "ctx_b" in row:
        return f"{row['ctx_a']} {str(row['ctx_b']).capitalize()}"
    return _text(row, "ctx")


def _described(row: dict[str, Any], context: str) -> str:
    return f"{row['activity_label']}: {context}" if row.get("activity_label") else context


def _clean(text: str) -> str:
    """Take out WikiHow's marks, in the order in which lm-evaluation-harness does."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _lambada(row: dict[str, Any], wording: Wording) -> Item:
    del wording
    context, space, last = _text(row, "text").rpartition(" ")
    if not (context and last):
        raise UnusableRowError("found no last word after a space in 'text'; expected a passage that ends with a word")
    return Item((Option(context, space + last, len(last)),))


def _cloze(row: dict[str, Any], wording: Wording) -> Item:
    before, *after = _text(row, "text").split(wording.blank)
    if len(after) != 1:
        raise UnusableRowError(f"found {len(after)} blanks {wording.blank!r} in 'text'; expected one")
    if "choices" not in row:
        answer = _text(row, "answer")
        return Item((Option(before, answer, len(answer)),))
    choices = _texts(row, "choices")
    filled = [choice + after[0] for choice in choices]
    return Item(tuple(Option(before, text, len(text)) for text in filled), _chosen(row, choices))


def _chosen(row: dict[str, Any], choices: list[str]) -> int:
    if "answer" not in row:
        return _label(row, len(choices))
    if row["answer"] not in choices:
        raise UnusableRowError(f"found the answer {row['answer']!r}; expected one of the choices")
    return choices.index(row["answer"])


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        fields = ", ".join(sorted(row))[:200] or "none"
        raise UnusableRowError(f"found no text in {name!r} (fields: {fields}); expected one")
    return value


def _texts(row: dict[str, Any], name: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(text, str) and text for text in value):
        raise UnusableRowError(f"found no list of texts in {name!r}; expected two or more")
    return value


def _label(row: dict[str, Any], num_options: int) -> int:
    value = str(row.get("label", ""))
    if not (value.isdecimal() and int(value) < num_options):
        raise UnusableRowError(f"found the label {value!r}; expected a whole number from 0 to {num_options - 1}")
    return int(value)


_PARSERS: dict[ItemKind, Callable[[dict[str, Any], Wording], Item]] = {
    "hellaswag": _hellaswag,
    "lambada": _lambada,
    "cloze": _cloze,
}
