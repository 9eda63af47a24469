"""The command line as a user meets it: precedence, the exact words of every mistake, exit codes."""

import math
import shlex
import subprocess
import sys
import textwrap
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

import jobs
from gpt_core.training.checkpoint import DamagedCheckpointWarning
from jobs import cli
from jobs.command_line import yaml_scalars
from jobs.command_line.help_text import render
from jobs.command_line.loader import load
from jobs.command_line.mistakes import SettingsMistakesError

ROOT = Path(cli.__file__).parents[1]
HELP = "herd sample --help explains every setting"


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Shape(Frozen):
    """Shape of the model."""

    n_embd: Annotated[int, Field(gt=0)] = 384
    """Width."""
    n_head: Annotated[int, Field(gt=0)] = 6
    """Heads."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"{self.n_head} does not divide n_embd {self.n_embd}; try 4 or 6")
        return self


class Source(Frozen):
    name: str
    weight: float = 1.0


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Job(Frozen):
    """A job for tests."""

    output: str
    """Folder to write."""
    title: str | None = "none yet"
    model: Shape = Shape()
    wide: Shape = Shape(n_embd=768, n_head=12)
    paths: tuple[str, ...] = ()
    sizes: list[int] = [1, 2]
    workers: int | Annotated[tuple[int, int], Field(strict=False)] = 1
    pair: Annotated[tuple[str, ...], Field(min_length=2, max_length=2)] = ("a", "b")
    place: Annotated[str, Field(min_length=1)] = "here"
    share: float = 0.5
    sources: tuple[Source, ...] = ()
    mixture: dict[str, float] = Field(default_factory=dict)
    device: Literal["cpu", "gpu"] = "cpu"
    color: Color = Color.RED
    folder: Path = Path("here")
    warmup_steps: Annotated[int, Field(ge=0)] | None = 10
    """Steps of warm-up."""
    limit: int | Literal["auto"] = "auto"
    quiet: bool = False


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a settings file named job.yaml into the working folder."""
    monkeypatch.chdir(tmp_path)

    def write_text(text: str) -> list[str]:
        Path("job.yaml").write_text(textwrap.dedent(text), encoding="utf-8")
        return ["--config", "job.yaml"]

    return write_text


def mistakes(argv: list[str], model: type[BaseModel] = Job) -> list[str]:
    """Return the lines of the report, without the last one that names the help."""
    with pytest.raises(SettingsMistakesError) as caught:
        load(model, argv, "herd sample")
    *lines, last = str(caught.value).splitlines()
    assert last == HELP
    return lines


def flag_mistakes(*argv: str) -> list[str]:
    return mistakes(["--output", "o", *argv])


# Precedence and values


def test_flags_win_over_the_file_and_the_file_over_defaults(write):
    argv = write("""
        output: from-file
        model: {n_embd: 512, n_head: 8}
    """)
    job = load(Job, [*argv, "--model.n_embd", "1024"])
    assert (job.output, job.model.n_embd, job.model.n_head, job.model.dropout) == ("from-file", 1024, 8, 0.0)


def test_section_given_in_part_keeps_the_rest_of_its_default_instance(write):
    assert load(Job, write("{output: o, wide: {dropout: 0.5}}")).wide == Shape(n_embd=768, n_head=12, dropout=0.5)
    assert load(Job, ["--output", "o", "--wide.n_head", "6"]).wide == Shape(n_embd=768, n_head=6)


def test_default_instances_are_not_changed_by_loading():
    load(Job, ["--output", "o", "--wide.n_head", "6", "--sizes.0", "9"])
    assert Job(output="o").wide.n_head == 12
    assert Job(output="o").sizes == [1, 2]


def test_python_object_equals_the_one_from_file_and_flags(write):
    argv = write("{output: o, warmup_steps: 0x10, mixture: {a: 3e-4}}")
    job = load(Job, [*argv, "--model.dropout=.5", "--color", "blue"])
    assert job == Job(output="o", warmup_steps=16, mixture={"a": 0.0003}, model=Shape(dropout=0.5), color=Color.BLUE)


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--title", "12"], "title", "12"),
        (["--title", "true"], "title", "true"),
        (["--title", "null"], "title", None),
        (["--title", ""], "title", ""),
        (["--title", "[a, b]"], "title", "[a, b]"),
        (["--title=--odd"], "title", "--odd"),
        (["--title", "-1"], "title", "-1"),
        (["--title=a=b"], "title", "a=b"),
        (["--folder", "1"], "folder", Path("1")),
        (["--warmup-steps", "3"], "warmup_steps", 3),
        (["--warmup_steps", "null"], "warmup_steps", None),
        (["--limit", "7"], "limit", 7),
        (["--limit", "auto"], "limit", "auto"),
        (["--quiet"], "quiet", True),
        (["--no-quiet"], "quiet", False),
        (["--quiet", "false"], "quiet", False),
        (["--quiet=true"], "quiet", True),
        (["--paths", "a", "b", "--paths", "c"], "paths", ("a", "b", "c")),
        (["--paths", "[a, '1', 2]", "null"], "paths", ("a", "1", "2", "null")),
        (["--paths", "[]"], "paths", ()),
        (["--sizes", "3", "4"], "sizes", [3, 4]),
        (["--sizes.1", "7"], "sizes", [1, 7]),
        (["--mixture.my-web", "2"], "mixture", {"my-web": 2.0}),
        (["--mixture", "{a: 1, b: 2.5}"], "mixture", {"a": 1.0, "b": 2.5}),
        (["--sources", "[{name: 12, weight: 2}]"], "sources", (Source(name="12", weight=2.0),)),
        (["--sources.0.name", "a", "--sources.1.name", "b"], "sources", (Source(name="a"), Source(name="b"))),
        (["--sources", "{name: a}", "{name: b}"], "sources", (Source(name="a"), Source(name="b"))),
        (["--sources", "{name: a}", "--sources.0.weight", "2"], "sources", (Source(name="a", weight=2.0),)),
        (["--paths", "[0-9]*.txt", "[ab]/*"], "paths", ("[0-9]*.txt", "[ab]/*")),
        (["--workers", "[1, 4]"], "workers", (1, 4)),
        (["--wide", "{n_head: 6}"], "wide", Shape(n_embd=768, n_head=6)),
        (["--wide.n_head", "6", "--wide", "{dropout: 0.5}"], "wide", Shape(n_embd=768, n_head=6, dropout=0.5)),
    ],
)
def test_flag_values_are_read_by_what_the_setting_accepts(argv, name, value):
    assert getattr(load(Job, ["--output", "o", *argv]), name) == value


def test_mapping_in_a_flag_keeps_what_the_file_says_of_the_section(write):
    argv = write("{output: o, model: {n_embd: 512, n_head: 8}}")
    assert load(Job, [*argv, "--model", "{dropout: 0.5}"]).model == Shape(n_embd=512, n_head=8, dropout=0.5)


def test_flag_changes_one_entry_of_a_list_in_the_file(write):
    argv = write("{output: o, sources: [{name: a}, {name: b}]}")
    job = load(Job, [*argv, "--sources.1.weight", "3"])
    assert job.sources == (Source(name="a"), Source(name="b", weight=3.0))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1e6", 1e6), ("-.5", -0.5), ("5.", 5.0), ("0o17", 15), ("0x1F", 31), ("007", 7),
        ("+12", 12), ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("12:30", "12:30"),
        ("1_000", "1_000"), ("2026-11-23", "2026-11-23"), ("true", True), ("FALSE", False), ("~", None),
        ("", None), ("null", None), ("nan", "nan"), ("inf", "inf"), ("-.inf", -math.inf), ("0b1", "0b1"),
    ],
)  # fmt: skip
def test_plain_scalars_follow_yaml_1_2(text, value):
    found = yaml_scalars.plain(text)
    assert (type(found), found) == (type(value), value)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none())
def test_written_values_read_back_as_themselves(value):
    assert yaml_scalars.plain(yaml_scalars.written(value)) == value


def test_words_of_yaml_1_1_stay_texts_in_files(write):
    assert load(Job, write("{output: no, paths: [yes, on, 1e]}")).paths == ("yes", "on", "1e")


def test_aliases_repeat_a_section(write):
    job = load(Job, write("{output: o, model: &m {n_head: 3}, wide: *m}"))
    assert (job.model.n_head, job.wide.n_head) == (3, 3)


# Mistakes in a file


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file(write):
    argv = write("""
        model:
          n_layers: 3
          n_head: five
        warmup_steps: -1
        device: gpus
    """)
    assert mistakes([*argv, "--quiet", "maybe", "--modle.n_head", "2"]) == [
        "job.yaml:3: model.n_layers: found no such setting; expected a known one; did you mean model.n_head?",
        "job.yaml:4: model.n_head: found the text 'five'; expected a whole number > 0; the default is 6",
        "job.yaml:5: warmup_steps: found -1; expected a whole number of steps >= 0 or null; the default is 10",
        "job.yaml:6: device: found the text 'gpus'; expected cpu or gpu; did you mean gpu?",
        "--quiet: found the text 'maybe'; expected true or false; the default is false",
        "--modle.n_head: found no such setting; expected a known one; did you mean --model.n_head?",
        "job.yaml: output: found nothing; expected a text; set it here or give --output VALUE",
    ]


@pytest.mark.parametrize(
    ("line", "report"),
    [
        ("outptu: x", "outptu: found no such setting; expected a known one; did you mean output?"),
        ("dropout: 0.1", "dropout: found no such setting; expected a known one; did you mean model.dropout?"),
        ("model: {n_heads: 3}", "model.n_heads: found no such setting; expected a known one; did you mean model.n_head?"),
        ("model: 3", "model: found 3; expected a section; give such a value"),
        ("model: [1]", "model: found the list [1]; expected a section; give such a value"),
        ("model: {n_head: true}", "model.n_head: found true; expected a whole number > 0; the default is 6"),
        ("model: {n_head: 6.0}", "model.n_head: found 6.0; expected a whole number > 0; write 6"),
        ("model: {n_head: '6'}", "model.n_head: found the text '6'; expected a whole number > 0; write 6 without quotes"),
        ("model: {n_head: 1_2}", "model.n_head: found the text '1_2'; expected a whole number > 0; write 12"),
        ("share: 0,1", "share: found the text '0,1'; expected a number; write 0.1"),
        ("share: 1,000", "share: found the text '1,000'; expected a number; write 1000"),
        ("share: '0.1'", "share: found the text '0.1'; expected a number; write 0.1 without quotes"),
        ("model: {n_head: '5.5'}", "model.n_head: found the text '5.5'; expected a whole number > 0; the default is 6"),
        ("workers: None", "workers: found the text 'None'; expected a whole number or a list of 2 whole numbers; the default is 1"),
        ("workers: [a, b]", "workers: found the list ['a', 'b']; expected a whole number or a list of 2 whole numbers; the default is 1"),
        ("pair: [a, b, c]", "pair: found the list ['a', 'b', 'c']; expected a list of 2 texts; the default is [a, b]"),
        ("place: ''", "place: found the text ''; expected a non-empty text; the default is here"),
        ("model: {n_head: }", "model.n_head: found null; expected a whole number > 0; the default is 6"),
        ("model: {dropout: 1}", "model.dropout: found 1; expected a number >= 0 and < 1; the default is 0.0"),
        ("model: {dropout: true}", "model.dropout: found true; expected a number >= 0 and < 1; the default is 0.0"),
        ("model: {dropout: .nan}", "model.dropout: found .nan; expected a finite number; mend it"),
        ("model: {dropout: -.inf}", "model.dropout: found -.inf; expected a finite number; mend it"),
        ("model: {dropout: 1e999}", "model.dropout: found 1e999; expected a finite number; mend it"),
        ("title: 12", 'title: found 12; expected a text or null; write "12" in quotes'),
        ("paths: a", "paths: found the text 'a'; expected a list of texts; write [a]"),
        ("paths: None", "paths: found the text 'None'; expected a list of texts; the default is []"),
        ("paths: [a, 2]", 'paths.1: found 2; expected a text; write "2" in quotes'),
        ("sizes: [1, x]", "sizes.1: found the text 'x'; expected a whole number; give such a value"),
        ("sources: [{nam: x, name: y}]", "sources.0.nam: found no such setting; expected a known one; did you mean sources.0.name?"),
        ("sources: [{weight: 1}]", "sources.0.name: found nothing; expected a text; set it here or give --sources.0.name VALUE"),
        ("mixture: {a: much}", "mixture.a: found the text 'much'; expected a number; give such a value"),
        ("color: blu", "color: found the text 'blu'; expected red or blue; did you mean blue?"),
        ("warmup_steps: none", "warmup_steps: found the text 'none'; expected a whole number of steps >= 0 or null; write null"),
        ("limit: 1.5", "limit: found 1.5; expected a whole number or auto; the default is auto"),
        ("quiet: yes", "quiet: found the text 'yes'; expected true or false; write true"),
        ("quiet: 1", "quiet: found 1; expected true or false; the default is false"),
        ("title: !!binary eA==", "title: found the tag !!binary; expected a plain value; remove the tag"),
        ("title: !!int x", "title: found the tag !!int; expected a plain value; remove the tag"),
        ("model: {n_head: 5}", "model: 5 does not divide n_embd 384; try 4 or 6"),
        ("wide: &w {n_head: *w}", "wide.n_head: found an alias of the section it is in; expected an alias of another one; write it out"),
    ],
)  # fmt: skip
def test_mistake_in_a_file_names_its_line(write, line, report):
    assert mistakes(write(f"output: o\n{line}\n")) == [f"job.yaml:2: {report}"]


def test_key_given_twice_is_refused_with_both_lines(write):
    argv = write("output: o\nmodel:\n  n_head: 3\n  dropout: 0.1\n  n_head: 4\nmodel: {}\n")
    assert mistakes(argv) == [
        "job.yaml:5: model.n_head: found a second value; expected one; the first is on line 3; remove one",
        "job.yaml:6: model: found a second value; expected one; the first is on line 2; remove one",
    ]


def test_cross_field_mistake_names_the_section_and_the_flag_involved(write):
    argv = write("output: o\n\nmodel:\n  n_embd: 100\n")
    assert mistakes([*argv, "--model.n_head", "7"]) == [
        "job.yaml:3 with --model.n_head: model: 7 does not divide n_embd 100; try 4 or 6"
    ]
    assert flag_mistakes("--model.n_head", "7") == ["--model.n_head: model: 7 does not divide n_embd 384; try 4 or 6"]


@pytest.mark.parametrize(
    ("text", "report"),
    [
        ("", "job.yaml: found an empty file; expected settings such as 'output: FOLDER'; fill it, or leave out --config"),
        ("# only this\n", "job.yaml: found an empty file; expected settings such as 'output: FOLDER'; fill it, or leave out --config"),
        ("- a\n", "job.yaml:1: found a list at the top; expected settings such as 'output: FOLDER'; write a colon and a space after each name"),
        ("output\n", "job.yaml:1: found a value at the top; expected settings such as 'output: FOLDER'; write a colon and a space after each name"),
        ("model:\n\tn_head: 3\n", "job.yaml:2: found a tab; expected spaces; indent with spaces"),
        ("output: a: b\n", "job.yaml:1: found a second colon or a wrong indent; expected one 'name: value' a line; indent it like its neighbours, or quote it"),
        ("output: o\n---\noutput: p\n", "job.yaml:2: found a second document (---); expected one; remove the line ---"),
        ("output: [a\n", "job.yaml:2: found no YAML (expected ',' or ']', but got '<stream end>'); expected YAML; quote texts that hold special signs"),
        ("output: \x07\n", "job.yaml: found unacceptable character #x0007: special characters are not allowed; expected YAML; mend it"),
        (f"output: {'[' * 3000}\n", "job.yaml: found hundreds of nested lists; expected settings; mend it"),
    ],
)  # fmt: skip
def test_unusable_file_is_one_mistake(write, text, report):
    assert mistakes(write(text)) == [report]


def test_unusable_file_does_not_hide_mistakes_in_flags(write):
    assert mistakes([*write(""), "--qiet"]) == [
        "job.yaml: found an empty file; expected settings such as 'output: FOLDER'; fill it, or leave out --config",
        "--qiet: found no such setting; expected a known one; did you mean --quiet?",
    ]


def test_list_as_a_name_is_refused(write):
    assert mistakes(write("output: o\n? [a]\n: 1\n")) == [
        "job.yaml:2: found a list as a name; expected a text; write 'name: value'"
    ]


def test_missing_file_names_a_near_one(write):
    write("output: o")
    assert mistakes(["--config", "jbo.yaml"]) == [
        "jbo.yaml: found no such file; expected a YAML file; did you mean job.yaml?"
    ]
    assert mistakes(["--config", "q/x.yaml"]) == [
        "q/x.yaml: found no such file; expected a YAML file; there is no folder q either"
    ]
    assert mistakes(["--config", "zzz"]) == [
        "zzz: found no such file; expected a YAML file; give --config another file"
    ]


def test_unreadable_files_are_refused(write, monkeypatch):
    argv = write("output: o")
    assert mistakes(["--config", "."]) == [
        ".: found a file that cannot be read (Is a directory); expected a YAML file; give --config another file"
    ]
    Path("job.yaml").write_bytes(b"output: \xff\n")
    assert mistakes(argv) == [
        "job.yaml: found a byte at 8 that is no UTF-8; expected a text file in UTF-8; save it as UTF-8"
    ]


def test_byte_order_mark_is_no_mistake(write):
    argv = write("")
    Path("job.yaml").write_bytes(b"\xef\xbb\xbfoutput: o\r\n")
    assert load(Job, argv).output == "o"


# Mistakes in flags


@pytest.mark.parametrize(
    ("argv", "report"),
    [
        (["--modle.n_head", "3"], "--modle.n_head: found no such setting; expected a known one; did you mean --model.n_head?"),
        (["--n_head=3"], "--n_head: found no such setting; expected a known one; did you mean --model.n_head?"),
        (["--zzz"], "--zzz: found no such setting; expected a known one; remove it"),
        (["--model.n_head", "x"], "--model.n_head: found the text 'x'; expected a whole number > 0; the default is 6"),
        (["--model.n_head", "0"], "--model.n_head: found 0; expected a whole number > 0; the default is 6"),
        (["--model.n_head"], "--model.n_head: found no values; expected a whole number > 0; give one value"),
        (["--model.n_head", "1", "2"], "--model.n_head: found 2 values; expected a whole number > 0; give one value"),
        (["--model.n_head", "1", "--model.n_head", "2"], "--model.n_head: found a second value; expected a whole number > 0; give the flag once"),
        (["--model.dropout", ".nan"], "--model.dropout: found .nan; expected a finite number; mend it"),
        (["--model.dropout", "nan"], "--model.dropout: found the text 'nan'; expected a number >= 0 and < 1; the default is 0.0"),
        (["--model", "3"], "--model: found 3; expected a section; give such a value"),
        (["--model", "{n_head: x}"], "--model: n_head: found the text 'x'; expected a whole number > 0; the default is 6"),
        (["--model", "{a"], "--model: found no YAML: {a; expected a list [a, b] or a mapping {a: b}; close each bracket"),
        (["--model", "[a, b"], "--model: found no YAML: [a, b; expected a list [a, b] or a mapping {a: b}; close each bracket"),
        (["--paths", "[a, b"], "--paths: found no YAML: [a, b; expected a list [a, b] or a mapping {a: b}; close each bracket"),
        (["--model", "{n_head: 3, n_head: 4}"], "--model: found a second value of n_head; expected one; remove one"),
        (["--model", "{? [a] : 3}"], "--model: found a list or mapping as a name; expected a text; write {name: value}"),
        (["--model.n_head", "3", "--model", "{n_head: 4}"], "--model: found a second value; expected a section; give the flag once"),
        (["--sources.0.name", "a", "--sources", "[{name: b}]"], "--sources: found a second value; expected a list of sections; give the flag once"),
        (["--mixture.a", "1", "--mixture", "{b: 1}"], "--mixture: found a second value; expected a section; give the flag once"),
        (["--sources.2.weight", "3"], "--sources.2.weight: found index 2; expected 0; count entries from 0"),
        (["--sizes.5", "3"], "--sizes.5: found index 5; expected 0 to 2; count entries from 0"),
        (["--sizes.01", "3"], "--sizes.01: found index 01; expected 0 to 2; count entries from 0"),
        (["--workers", "[]"], "--workers: found the list []; expected a whole number or a list of 2 whole numbers; the default is 1"),
        (["--workers", "[1, 2, 3]"], "--workers: found the list [1, 2, 3]; expected a whole number or a list of 2 whole numbers; the default is 1"),
        (["--model.n_head", "9" * 5000], f"--model.n_head: found {'9' * 57}...; expected a finite number; mend it"),
        (["--paths", "a\udcff"], "--paths: 0: found a text that is no UTF-8; expected a text in UTF-8; rename or retype it"),
        (["--mixture", f"{{a: {'[' * 220}{']' * 220}}}"], "herd sample: found hundreds of nested lists or sections; expected settings; mend it"),
        (["--sizes", "1", "x"], "--sizes: 1: found the text 'x'; expected a whole number; give such a value"),
        (["--paths"], "--paths: found no value; expected a list of texts; write [] for an empty list"),
        (["--no-title"], "--no-title: found --no-; expected it alone, before a true-or-false setting; write --title VALUE"),
        (["--no-quiet", "true"], "--no-quiet: found --no-; expected it alone, before a true-or-false setting; write --quiet VALUE"),
        (["--config", ""], "--config: found an empty name; expected one file; write --config FILE"),
        (["--config"], "--config: found no values; expected one file; write --config FILE"),
        (["--config", "a", "--config", "b"], "--config: found a second file; expected one; put what both hold into one"),
    ],
)  # fmt: skip
def test_mistake_in_a_flag_names_the_flag(argv, report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a").write_text("output: o")
    assert [line for line in flag_mistakes(*argv) if not line.startswith("a:")] == [report]


def test_flag_into_a_value_that_is_no_section_is_refused(write):
    assert mistakes([*write("output: o\nsources: [a]\n"), "--sources.0.weight", "3"]) == [
        "job.yaml:2 with --sources.0.weight: sources.0: found the text 'a'; expected a section; give such a value",
        "--sources.0.weight: found the text 'a'; expected a section as sources.0; write it as one",
    ]


def test_word_before_any_flag_is_refused():
    assert mistakes(["run", "--output", "o"]) == [
        "'run': found a word before any flag; expected --section.field VALUE; put a flag before it"
    ]


def test_required_setting_without_file_asks_for_the_flag():
    assert mistakes([]) == ["herd sample: output: found nothing; expected a text; give --output VALUE or --config FILE"]


_WORDS = ["--output", "--model", "--model.n_head", "--sources", "--sources.1.name", "--paths", "--paths.2", "--sizes.0"]
_VALUES = ["[", "{", "[]", "{}", "null", "[a, 1]", "{n_head: 1, n_head: 2}", "{? [a] : 1}", "9" * 5000, "\udcff"]


@given(st.lists(st.text(max_size=12) | st.sampled_from([*_WORDS, "--workers", "--mixture", "--pair", *_VALUES])))
def test_any_words_give_settings_or_a_report_and_never_another_error(argv):
    argv = [word for word in argv if not word.startswith("--config")]
    report = HELP
    try:
        load(Job, argv, "herd sample")
    except SettingsMistakesError as error:
        report = str(error)
    assert report.endswith(HELP)


# Help


def test_help_has_one_line_a_setting_with_type_unit_and_default():
    text = render("herd sample", "Make a sample.", Job, "--output folder")
    lines = text.splitlines()
    assert lines[0] == "herd sample: Make a sample."
    assert "usage: herd sample [--config FILE] [--section.field VALUE ...]" in lines
    assert "  --output        text, required. Folder to write." in lines
    assert "  --warmup_steps  whole number of steps >= 0 or null, default 10. Steps of warm-up." in lines
    assert "  --sizes         list of whole numbers, default [1, 2]." in lines
    assert "  --mixture       section, default {}." in lines
    assert "  --quiet         true or false, default false." in lines
    assert "model: Shape of the model." in lines
    assert "  --model.n_head   whole number > 0, default 6. Heads." in lines
    assert "  --wide.n_head   whole number > 0, default 12. Heads." in lines
    assert "  --sources.N.name    text, required." in lines
    assert lines[-2:] == ["example", "  herd sample --output folder"]
    assert "usage: herd sample FOLDER [--config FILE]" in render("herd sample", "", Job, "folder", "FOLDER")


def test_a_section_that_is_missing_is_given_by_its_settings():
    class Outer(BaseModel):
        inner: Job

    with pytest.raises(SettingsMistakesError, match=r"inner: found nothing; .*; give --inner.NAME VALUE or --config"):
        load(Outer, [], "herd sample")


@pytest.mark.parametrize("job", [job for job in cli.job_names() if hasattr(cli.module_of(job), "SETTINGS")])
def test_the_example_a_job_helps_with_can_be_typed(job, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main([job, "--help"]) == 0
    program, typed, *words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (program, typed) == ("herd", job)
    assert cli.settings_of(job, words)


# The program


@pytest.fixture
def run_job(tmp_path, monkeypatch, capsys):
    """Run `herd sample` with a main() of the given body; return exit code, stdout and stderr."""
    monkeypatch.setattr(cli, "_FOLDER", tmp_path)
    monkeypatch.setattr(jobs, "__path__", [*jobs.__path__, str(tmp_path)])
    monkeypatch.setitem(cli._MODULES, "sample", "sample")
    monkeypatch.delitem(sys.modules, "jobs.sample", raising=False)

    def run(body: str, *argv: str) -> tuple[int, str, str]:
        (tmp_path / "sample.py").write_text(
            '"""Make a sample.\n\nMore."""\n'
            "from pydantic import BaseModel, ConfigDict\n"
            "from gpt_core.errors import CorpusError, RunFailedError\n"
            "class SETTINGS(BaseModel):\n"
            "    model_config = ConfigDict(extra='forbid')\n"
            "    seed: int = 1\n"
            "EXAMPLE = '--seed 2'\n"
            f"def main(settings):\n    {body}\n"
        )
        code = cli.main(["sample", *argv])
        sys.modules.pop("jobs.sample", None)
        return (code, *capsys.readouterr())

    return run


def test_summary_is_printed_and_exit_code_is_0(run_job):
    assert run_job("return f'seed {settings.seed}'", "--seed", "7") == (0, "seed 7\n", "")
    assert run_job("pass") == (0, "", "")


def test_user_error_exits_2_with_its_text_alone(run_job):
    body = "raise CorpusError('a.txt', 'nothing', 'text', 'write some')"
    assert run_job(body) == (2, "", "a.txt: found nothing; expected text; write some\n")


def test_settings_mistakes_exit_2_before_the_job_runs(run_job):
    code, out, err = run_job("print('ran')", "--sed", "7")
    assert (code, out) == (2, "")
    assert err == (f"--sed: found no such setting; expected a known one; did you mean --seed?\n{HELP}\n")


def test_failed_run_exits_1_with_its_text_alone(run_job):
    body = "raise RunFailedError('worker 1', 'a crash', 'an end', 'look at the log')"
    assert run_job(body) == (1, "", "worker 1: found a crash; expected an end; look at the log\n")


def test_unforeseen_error_exits_1_with_one_line(run_job):
    assert run_job("raise ValueError('\\n  too bad\\nmore')") == (
        1,
        "",
        "herd sample failed: ValueError: too bad; add --traceback to see where it arose\n",
    )


def test_a_full_disk_is_the_users_to_mend_and_exits_2(run_job):
    body = "import errno; raise OSError(errno.ENOSPC, 'No space left on device', 'big.bin')"
    said = "big.bin: found No space left on device; expected a place with room to write; free space and run it again\n"
    assert run_job(body) == (2, "", said)


def test_ctrl_c_exits_130_and_says_how_to_go_on(run_job):
    assert run_job("raise KeyboardInterrupt") == (
        130,
        "",
        "interrupted: herd sample stopped; run the same command again to continue\n",
    )


def test_a_job_that_its_settings_end_early_exits_0_and_says_where_it_stopped(run_job):
    body = "from cluster.interrupts import Stopped; raise Stopped('stopped at step 3 of 9')"
    assert run_job(body) == (0, "", "stopped at step 3 of 9\n")


def test_sigterm_is_handled_as_ctrl_c_is_and_exits_143(run_job):
    body = "import os, signal, threading; os.kill(os.getpid(), signal.SIGTERM); threading.Event().wait(30)"
    assert run_job(body) == (
        143,
        "",
        "terminated: herd sample stopped; run the same command again to continue\n",
    )


def test_traceback_is_shown_on_request(run_job):
    code, _, err = run_job("raise ValueError('bad')", "--traceback")
    assert code == 1
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("herd sample failed: ValueError: bad\n")


def test_job_help_runs_nothing(run_job):
    code, out, err = run_job("print('ran')", "--seed", "x", "--help")
    assert (code, err) == (0, "")
    assert out.startswith("herd sample: Make a sample.\n")
    assert "--seed  whole number, default 1." in out


def test_herd_help_job_is_the_help_of_the_job(run_job, capsys):
    _, out, _ = run_job("print('ran')", "--help")
    assert cli.main(["help", "sample"]) == 0
    assert capsys.readouterr().out == out


def test_overview_lists_the_jobs_that_are_there_with_their_first_lines(run_job, capsys):
    run_job("pass")
    assert cli.main(["--help"]) == 0
    assert "\njobs\n  sample  Make a sample.\n" in capsys.readouterr().out
    assert cli.main([]) == 0


def test_unknown_job_names_the_nearest(run_job, capsys):
    run_job("pass")
    assert cli.main(["smaple"]) == 2
    assert capsys.readouterr().err == "herd: found no job 'smaple'; expected a job; did you mean herd sample?\n"
    assert cli.main(["xyz"]) == 2
    assert capsys.readouterr().err == "herd: found no job 'xyz'; expected a job; herd --help lists them\n"


def test_broken_pipe_inside_a_job_is_a_failure_not_a_silence(run_job):
    code, _, err = run_job("raise BrokenPipeError('worker gone')")
    assert code == 1
    assert err == "herd sample failed: BrokenPipeError: worker gone; add --traceback to see where it arose\n"


def test_reader_that_goes_away_ends_the_program_in_silence():
    command = f"sleep 0.2; {sys.executable} -m jobs --help; echo $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"({command}) | true"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert done.stderr == "1\n"


def test_overview_loads_no_heavy_library():
    program = (
        "import sys; from jobs import cli; code = cli.main(['--help']);"
        "heavy = {'ray', 'torch', 'mlflow', 'pyarrow', 'pydantic', 'yaml', 'rich'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_version_is_named(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("herd ")


def test_a_warning_of_our_own_is_a_plain_line_and_one_of_a_library_names_its_place(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    cli.main(["--version"])
    assert warnings.formatwarning("passed over", DamagedCheckpointWarning, "checkpoint.py", 136) == "passed over\n"
    assert warnings.formatwarning("odd", UserWarning, "lib.py", 7, "call()") == "lib.py:7: UserWarning: odd\n  call()\n"
