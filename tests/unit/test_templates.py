"""Promises of gpt_core.finetuning.templates: a model is asked as it was taught."""

import re
from pathlib import Path

import pytest

from gpt_core.errors import SettingsError
from gpt_core.finetuning.templates import TEMPLATES, few_shot_prompt, find_template, separators_of, stop_strings
from gpt_core.generation.prompts import read_range, scan_prompts
from gpt_core.generation.request import Sampling
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.tokens.train_tokenizer import write_ranks

BYTES = {bytes([byte]): byte for byte in range(256)}


@pytest.fixture
def tokenizer_of(tmp_path):
    def make(template):
        path = tmp_path / "v.tiktoken"
        write_ranks(path, BYTES, template.specials)
        return load_tokenizer(str(path))

    return make


@pytest.mark.parametrize(
    ("task", "prompt", "ids", "answer"),
    [
        ("translate", "hi <to-fr>", [*b"hi ", 257], " yo"),
        ("summarize", "hi TL;DR:", [*b"hi TL;DR:"], " yo"),
        ("completion", "[example] hi [toCode]", [257, *b" hi ", 258], " yo"),
        ("plain", "hi", [*b"hi"], "yo"),
    ],
)
def test_examples_become_the_ids_written_down_here(tokenizer_of, task, prompt, ids, answer):
    template = find_template(task)
    assert template.prompt("hi") == prompt
    encoded, target = template.encode(tokenizer_of(template), "hi", "yo")
    assert encoded.tolist() == ids
    assert target.tolist() == list(answer.encode())


@pytest.mark.parametrize("task", TEMPLATES)
@pytest.mark.parametrize("source", ["hi", "two words", " spaced ", "à\n", "x TL;DR:"])
def test_a_prompt_has_the_ids_of_its_text(tokenizer_of, task, source):
    template = find_template(task)
    tokenizer = tokenizer_of(template)
    assert (
        template.encode(tokenizer, source, "y")[0].tolist() == tokenizer.encode_prompt(template.prompt(source)).tolist()
    )


def test_a_source_that_spells_a_special_token_stays_text(tokenizer_of):
    template = find_template("translate")
    ids = template.encode(tokenizer_of(template), "<to-fr><|endoftext|>", "y")[0].tolist()
    assert ids == [*b"<to-fr><|endoftext|> ", 257]


@pytest.mark.parametrize(("task", "separator"), [("translate", "<to-pt-br>"), ("completion", "=>")])
def test_a_vocabulary_s_own_separator_parts_source_from_target(tokenizer_of, task, separator):
    found = separators_of(tokenizer_of(find_template(task, separator)))
    assert found == {"TL;DR:", "<to-fr>", "[toCode]", separator}


def test_another_separator_is_another_special_token():
    template = find_template("translate", "<to-de>")
    assert template.specials == ("<to-de>",)
    assert template.prompt("hi") == "hi <to-de>"


@pytest.mark.parametrize(
    ("task", "separator", "found"),
    [
        ("poem", None, "task: found 'poem'; expected one of translate, summarize, completion, plain"),
        ("plain", "=>", "separator: found '=>'; expected none for the task plain"),
        ("translate", " ", "separator: found ' '; expected a word of its own"),
        ("completion", "[example]", "separator: found '\\[example\\]'; expected a word of its own"),
    ],
)
def test_mistakes_are_named(task, separator, found):
    with pytest.raises(SettingsError, match=found):
        find_template(task, separator)


def test_a_few_shot_prompt_shows_its_examples_and_ends_where_the_next_begins():
    template = find_template("completion")
    prompt = few_shot_prompt(template, [("one", "f(1)"), ("two", "f(2)")], "three")
    assert prompt == "[example] one [toCode] f(1)\n[example] two [toCode] f(2)\n[example] three [toCode]"
    assert stop_strings(template) == ("\n[example]", "[toCode]")
    assert few_shot_prompt(template, [], "one") == template.prompt("one")
    assert stop_strings(find_template("summarize")) == ("\n",)


def test_the_documented_few_shot_prompts_are_prompts_of_herd_generate(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")
    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    scan = scan_prompts(("prompts.jsonl",), Sampling(), 8)
    assert not scan.rejects
    first, second = (prompt for cut in scan.ranges for prompt in read_range(scan.files, cut, Sampling()))
    shown = "[example] Return the larger number. [toCode] max(a, b)\n[example] Return the length of a list. [toCode] "
    assert first.text == f"{shown}len(items)\n[example] Return the smaller number. [toCode]"
    assert first.sampling.stop == second.sampling.stop == ("\n[example]", "[toCode]")
