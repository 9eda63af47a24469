"""How a supervised example becomes tokens: the templates of fine-tuning, and few-shot prompts made of them.

| template | text of an example | what is a special token |
|---|---|---|
| translate | SOURCE <to-fr> TARGET | <to-fr> |
| summarize | SOURCE TL;DR: TARGET | nothing |
| completion | [example] SOURCE [toCode] TARGET | [example] and [toCode] |
| plain | SOURCE immediately followed by TARGET | nothing |

Invariant: the prompt's ids of an example are those that ``Tokenizer.encode_prompt`` gives for the prompt as a text,
so that a model is asked as it was taught. Only a source that spells a special token is another matter: in an example
it stays text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpt_core.errors import SettingsError
from gpt_core.tokens.tokenizer import Ids, Tokenizer
from gpt_core.tokens.vocabulary import END_OF_TEXT


@dataclass(frozen=True, slots=True)
class Template:
    """The words around source and target.

    Attributes:
        opening: Before the source, a special token; "" for none.
        separator: Between source and target; "" for none.
        is_special: Whether the separator is a special token.
        gap: Between the words.
    """

    opening: str = ""
    separator: str = ""
    is_special: bool = False
    gap: str = " "

    @property
    def specials(self) -> tuple[str, ...]:
        """The special tokens."""
        return tuple(word for word in (self.opening, self.separator if self.is_special else "") if word)

    def prompt(self, source: str) -> str:
        """Return the text that asks for the target."""
        return self.gap.join(word for word in (self.opening, source, self.separator) if word)

    def answer(self, target: str) -> str:
        """Return the text that follows the prompt."""
        return self.gap + target

    def encode(self, tokenizer: Tokenizer, source: str, target: str) -> tuple[Ids, Ids]:
        """Return the ids of an example's prompt and of its target, end of text not included."""
        before = self.gap if self.opening else ""
        after = self.gap if self.is_special else f"{self.gap}{self.separator}" if self.separator else ""
        parts = [tokenizer.encode(f"{before}{source}{after}")]
        if self.opening:
            parts.insert(0, tokenizer.encode_prompt(self.opening))
        if self.is_special:
            parts.append(tokenizer.encode_prompt(self.separator))
        return np.concatenate(parts), tokenizer.encode(self.answer(target))


TEMPLATES = {
    "translate": Template(separator="<to-fr>", is_special=True),
    "summarize": Template(separator="TL;DR:"),
    "completion": Template("[example]", "[toCode]", is_special=True),
    "plain": Template(gap=""),
}


def find_template(name: str, separator: str | None = None) -> Template:
    """Return a template by its name, with another separator where one is given.

    Raises:
        SettingsError: There is no such template, it has no separator, or the separator is blank or end of text.
    """
    if name not in TEMPLATES:
        raise SettingsError("task", repr(name), "one of " + ", ".join(TEMPLATES), "choose one of these")
    template = TEMPLATES[name]
    if separator is None:
        return template
    if not template.separator:
        raise SettingsError("separator", repr(separator), f"none for the task {name}", "leave it out")
    if not separator.strip() or separator in {END_OF_TEXT, template.opening}:
        raise SettingsError("separator", repr(separator), "a word of its own, such as <to-de>", "choose another")
    return replace(template, separator=separator)


def separators_of(tokenizer: Tokenizer) -> frozenset[str]:
    """Return what parts source from target in the prompts of a vocabulary: the templates' words, and its own tokens."""
    words = {template.separator for template in TEMPLATES.values() if template.separator}
    openings = {template.opening for template in TEMPLATES.values()}
    return frozenset(words | set(tokenizer.specials) - openings)


def few_shot_prompt(template: Template, shots: Sequence[tuple[str, str]], source: str) -> str:
    """Return a prompt that shows (source, target) pairs, one a line, before it asks for the source's target."""
    shown = [template.prompt(shot) + template.answer(target) for shot, target in shots]
    return "\n".join([*shown, template.prompt(source)])


def stop_strings(template: Template) -> tuple[str, ...]:
    """Return what ends a completion of a few-shot prompt: the beginning of another example, or its separator."""
    return tuple(f"\n{template.opening}" if word == template.opening else word for word in template.specials) or ("\n",)
