"""Promises of benchmarks.applications: what is held out stays out, and what the tables count."""

import zipfile

from benchmarks.applications import translate
from benchmarks.applications.complete_code import parses, scores
from benchmarks.applications.finetuned import split_by_hash, table
from benchmarks.applications.summarize import lead


def test_each_source_is_kept_once_with_its_first_target_on_one_side_whatever_the_order():
    pairs = [(f"source {number % 50}", f"target {number}") for number in range(100)]
    taught, held_out = split_by_hash(pairs, 0.2)
    assert dict(taught + held_out) == dict(reversed(pairs))
    assert len(taught + held_out) == 50
    assert 3 <= len(held_out) <= 20
    assert split_by_hash(sorted(dict(reversed(pairs)).items()), 0.2) == (taught, held_out)
    assert set(split_by_hash(pairs[:30], 0.2)[1]) <= set(held_out)


def test_code_counts_as_parsing_when_there_is_some():
    assert [parses(text) for text in ("def f(x):\n    return x", "", "def f(", "# nothing")] == [
        True,
        False,
        False,
        False,
    ]
    assert scores(["x = 1", "y ="], [("a", "x = 1"), ("b", "y = 2")]) == ["50.0%", "50.0%"]


def test_the_lead_is_the_first_sentence():
    assert lead("One thing. Another.") == "One thing."
    assert lead("no end") == "no end"


def test_tables_are_markdown():
    assert table(["a", "b"], [["1", 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_pairs_of_a_wheel_are_the_messages_of_its_french_catalogues(tmp_path):
    from babel.messages.catalog import Catalog
    from babel.messages.mofile import write_mo

    catalogue = Catalog(locale="fr")
    for source, target in {
        "Save": "Enregistrer",
        "two\nlines": "deux\nlignes",
        ("a day", "days"): ("un jour", "jours"),
    }.items():
        catalogue.add(source, target)
    named = Catalog(locale="fr")
    named.add("Basque", "basque")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for language in ("fr", "de"):
            with wheel.open(f"a/locale/{language}/LC_MESSAGES/a.mo", "w") as file:
                write_mo(file, catalogue)
        with wheel.open("a/locale/fr/LC_MESSAGES/iso639-3.mo", "w") as file:
            write_mo(file, named)
        wheel.writestr("a/locale/fr/LC_MESSAGES/a.po", "no catalogue in binary")
    assert list(translate.wheel_pairs([tmp_path / "a.whl"], names=False)) == [("Save", "Enregistrer")]
    assert list(translate.wheel_pairs([tmp_path / "a.whl"], names=True)) == [("Basque", "basque")]
