"""Places that cannot be written: one message, exit code 2."""

from pathlib import Path

import pytest

from jobs import cli
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.mark.parametrize(
    ("job", "words", "found"),
    [
        ("export", ["--output", "taken"], "taken: found a file; expected room for a folder"),
        ("export", ["--output", "taken/folder"], "taken: found File exists"),
        ("inspect", ["--prompt", "a", "--html", "taken/page.html"], "taken: found File exists"),
        ("inspect", ["--prompt", "a", "--html", "run"], "run: found a folder; expected room for a file"),
    ],
)
def test_an_output_that_is_in_the_way_is_a_mistake_to_mend(
    job: str,
    words: list[str],
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_checkpoint(tmp_path / "run")
    (tmp_path / "taken").write_text("mine")
    assert cli.main([job, "--checkpoint", "run", *words]) == 2
    assert found in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_vocabulary_is_not_learnt_for_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a text")
    assert cli.main(["train-tokenizer", "--input", "text.txt", "--output", "text.txt/ranks"]) == 2
    assert "text.txt: found File exists; expected an output folder that can be written" in capsys.readouterr().err


def test_an_import_into_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    assert cli.main(["import", "--model", "gpt2", "--output", "taken"]) == 2
    assert "taken: found a file; expected room for a folder" in capsys.readouterr().err
