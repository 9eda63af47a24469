"""Promises of cluster.tokenizing about its input: what it passes over is counted, and the corpus is never its own."""

from pathlib import Path
from typing import Any

import pytest

from cluster import tokenizing
from gpt_core.corpus import manifest
from gpt_core.corpus.tokenize_shard import ShardTokenizer
from gpt_core.errors import CorpusError
from gpt_core.settings import TokenizeSettings


def settings_of(output: Path, *sources: Path, **changes: Any) -> TokenizeSettings:
    given = {"output": str(output), "input": [str(source) for source in sources], "tokenizer": {"name": "bytes"}}
    return TokenizeSettings.model_validate(given | changes)


def names(settings: TokenizeSettings) -> list[str]:
    return [file.name for file in tokenizing.resolve(settings).plans.files]


def make(settings: TokenizeSettings) -> None:
    inputs = tokenizing.resolve(settings)
    worker = ShardTokenizer(tokenizing.options_for(settings, inputs, "bytes"))
    rows = [worker(plan) for plan in inputs.plans]
    manifest.write(settings.output, tokenizing.contents_of(settings, inputs, lambda: rows, "bytes"))


def test_a_corpus_inside_its_input_is_not_read_by_the_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "corpus-notes.txt").write_text("not in the corpus")
    settings = settings_of(tmp_path / "corpus", tmp_path)
    make(settings)
    assert sorted(path.name for path in (tmp_path / "corpus").rglob("*.arrow"))
    assert names(settings) == ["a.txt", "corpus-notes.txt"]
    assert tokenizing.finished(settings, tokenizing.resolve(settings)) is not None
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    linked = settings.model_copy(update={"input": (f"{tmp_path}-link",)})
    assert names(linked) == ["a.txt", "corpus-notes.txt"]


def test_what_was_set_aside_and_that_nothing_is_held_out_is_remarked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "hello"}\nbroken\n')
    (tmp_path / "b.txt").write_bytes(b"\xff")
    settings = settings_of(tmp_path / "corpus", tmp_path / "*.*", validation_fraction=0.001)
    make(settings)
    aside, missing = tokenizing.remarks_on(settings, manifest.read(settings.output))

    folder = tmp_path / "corpus" / "rejects"
    assert aside.startswith(f"set aside 2 documents in {folder}; the first, a.jsonl, line 2: found broken JSON")
    assert missing.startswith("nothing is held out, there is no split 'validation'; a larger --validation_fraction")


def test_input_that_is_all_in_the_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")

    with pytest.raises(CorpusError, match="source 'text': found no file but those in the output folder"):
        tokenizing.resolve(settings_of(tmp_path, tmp_path))


def test_shards_committed_before_held_out_ends_were_counted_make_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    settings = settings_of(tmp_path / "corpus", tmp_path / "a.txt")
    inputs = tokenizing.resolve(settings)
    row = ShardTokenizer(tokenizing.options_for(settings, inputs, "bytes"))(inputs.plans[0])
    del row["num_tails"]
    written = manifest.write(settings.output, tokenizing.contents_of(settings, inputs, lambda: [row], "bytes"))

    assert written.header["documents"]["tails"] == 0


def test_files_that_were_passed_over_are_counted_by_suffix_unless_they_were_excluded(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.exe", "c.exe", "d.bz2", "e", "x.1", "x.2", "x.3", "gone.docx"):
        (tmp_path / "in" / name).write_text("x")
    source = {"name": "all", "paths": [str(tmp_path / "in")], "exclude": ["gone.*"]}
    found = tokenizing.resolve(settings_of(tmp_path / "out", input=[], sources=[source])).ignored
    assert tokenizing.told_ignored(found) == (
        "7 files in folders, hidden or of no known suffix (2 .exe, 1 without one, 1 .1, 1 .2, 1 .3, 1 others)"
    )


def test_a_weight_too_small_to_be_met_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    sources = [{"name": name, "paths": [str(tmp_path / "a.txt")], "weight": 10.0**-power} for name, power in
               (("a", 300), ("b", 0))]  # fmt: skip

    with pytest.raises(CorpusError, match="source weights: found a share of 1e-300"):
        tokenizing.resolve(settings_of(tmp_path / "out", input=[], sources=sources))
