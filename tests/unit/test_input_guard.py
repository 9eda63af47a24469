"""Promises of cluster.input_guard: one corpus is of one version of its input, and an edit of it is seen."""

import os
from pathlib import Path

import pytest

from cluster import input_guard, tokenizing
from gpt_core.corpus import manifest
from gpt_core.corpus.tokenize_shard import ShardTokenizer
from gpt_core.documents.input_changes import gather
from gpt_core.documents.source_files import SourceSpec, list_files
from gpt_core.errors import CorpusError, StaleOutputError
from gpt_core.ledger import Ledger
from gpt_core.settings import TokenizeSettings


@pytest.fixture
def settings(tmp_path: Path) -> TokenizeSettings:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.jsonl").write_bytes(b"".join(b'{"text": "%d"}\n' % number for number in range(100)))
    given = {"input": [str(folder)], "output": str(tmp_path / "out"), "tokenizer": {"name": "bytes"}}
    return TokenizeSettings.model_validate(given | {"shard_bytes": 500})


def begun(settings: TokenizeSettings, num_shards: int) -> list[dict[str, object]]:
    """Begin the job as `perform` does, without Ray, and commit some of its shards."""
    inputs = tokenizing.resolve(settings)
    ledger = Ledger(settings.output)
    ledger.open({})
    input_guard.check_resumed(settings.output, inputs.plans)
    worker = ShardTokenizer(tokenizing.options_for(settings, inputs, "bytes"))
    rows = [worker(plan) for plan in inputs.plans[:num_shards]]
    ledger.record(rows[:2])
    for row in rows[2:]:
        ledger.commit(row["index"], row)
    return rows


def made(settings: TokenizeSettings) -> str:
    """Make the corpus and return its root digest."""
    inputs = tokenizing.resolve(settings)
    rows = begun(settings, len(inputs.plans))
    return manifest.write(settings.output, tokenizing.contents_of(settings, inputs, lambda: rows, "bytes")).root_digest


def edit(settings: TokenizeSettings, name: str, byte: int = 12) -> None:
    """Change a digit; size and time of modification stay."""
    path = Path(settings.input[0]) / name
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_an_edited_file_is_not_taken_for_the_one_that_a_finished_corpus_was_made_from(
    settings: TokenizeSettings,
) -> None:
    made(settings)
    assert tokenizing.finished(settings, tokenizing.resolve(settings)) is not None
    edit(settings, "b.jsonl")
    with pytest.raises(StaleOutputError):
        tokenizing.finished(settings, tokenizing.resolve(settings))
    with pytest.raises(StaleOutputError) as raised:
        tokenizing.finished(settings, tokenizing.resolve(settings))
    assert str(raised.value) == (
        f"{settings.output}: input files: found other contents of {settings.input[0]}/b.jsonl than when the corpus was "
        "made; expected the same contents; restore the file, or choose another output folder"
    )
    edit(settings, "b.jsonl")
    assert tokenizing.finished(settings, tokenizing.resolve(settings)) is not None


def test_a_file_that_was_added_grown_or_lost_since_a_corpus_was_made_is_named(settings: TokenizeSettings) -> None:
    made(settings)
    folder = Path(settings.input[0])

    def refused() -> str:
        with pytest.raises(StaleOutputError) as raised:
            tokenizing.finished(settings, tokenizing.resolve(settings))
        return raised.value.found

    (folder / "d.jsonl").touch()
    assert refused() == "d.jsonl added since the corpus was made"
    (folder / "b.jsonl").unlink()
    assert refused() == "b.jsonl gone, and 1 more changed, since the corpus was made"
    (folder / "a.jsonl").write_text("hello")
    assert refused() == "a.jsonl changed from 1490 to 5 bytes, and 2 more changed, since the corpus was made"


def test_a_touched_file_is_read_once_more_and_then_known(
    settings: TokenizeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = made(settings)
    (Path(settings.input[0]) / "c.jsonl").touch()
    (Path(settings.input[0]) / "a.jsonl").touch()
    for expected in (1, 0):
        found = tokenizing.finished(settings, tokenizing.resolve(settings))
        assert found is not None
        assert found.root_digest == digest
        assert capsys.readouterr().err.count("comparing the contents of 2 input files") == expected


def test_times_do_not_enter_the_root_digest(settings: TokenizeSettings, tmp_path: Path) -> None:
    digest = made(settings)
    (Path(settings.input[0]) / "c.jsonl").touch()
    assert made(settings.model_copy(update={"output": str(tmp_path / "again")})) == digest


def test_a_resumed_job_refuses_a_file_of_which_it_has_read_another_version(settings: TokenizeSettings) -> None:
    inputs = tokenizing.resolve(settings)
    rows = begun(settings, 4)
    assert {piece.file.name for plan in inputs.plans[:4] for piece in plan.pieces} == {"a.jsonl", "b.jsonl"}
    assert len(rows) == 4
    edit(settings, "c.jsonl")
    edit(settings, "b.jsonl", -3)  # in a piece that is still to be read
    input_guard.check_resumed(settings.output, tokenizing.resolve(settings).plans)
    edit(settings, "b.jsonl")
    for _ in range(2):
        with pytest.raises(StaleOutputError, match=r"contents of .*b.jsonl than when the unfinished job here read it"):
            input_guard.check_resumed(settings.output, tokenizing.resolve(settings).plans)
    edit(settings, "b.jsonl")
    input_guard.check_resumed(settings.output, tokenizing.resolve(settings).plans)


def test_an_edit_while_the_job_runs_commits_nothing(settings: TokenizeSettings) -> None:
    inputs = tokenizing.resolve(settings)
    facts = gather(inputs.plans, begun(settings, len(inputs.plans)))

    def check() -> None:
        files = list_files(SourceSpec("text", settings.input))
        input_guard.check_unchanged(settings.output, inputs.plans, facts, files)

    check()
    (Path(settings.input[0]) / "a.jsonl").touch()
    check()
    edit(settings, "a.jsonl")
    with pytest.raises(CorpusError, match=r"a.jsonl: found other contents than when it was read"):
        check()
