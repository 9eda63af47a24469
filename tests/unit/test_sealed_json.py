"""Sealed results: read back as written, or not at all."""

from pathlib import Path

import pytest

from gpt_core import sealed_json
from gpt_core.errors import CorpusError

CONTENT = {"loss": 1.25, "name": "où", "parts": [1, None, True], "inner": {"b": 2, "a": 1}}


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "made" / "result.json"
    assert sealed_json.read(path) is None
    sealed_json.write(path, {"old": True})
    sealed_json.write(path, CONTENT)
    assert sealed_json.read(path) == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_a_result_in_a_store_is_read_back_and_makes_no_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "memory://sealed/result.json"
    assert sealed_json.read(url) is None
    sealed_json.write(url, CONTENT)
    assert sealed_json.read(url) == CONTENT
    assert list(tmp_path.iterdir()) == []


def test_no_number_that_json_lacks_is_written(tmp_path: Path) -> None:
    sealed_json.write(tmp_path / "result.json", CONTENT)
    with pytest.raises(ValueError, match="not JSON compliant"):
        sealed_json.write(tmp_path / "result.json", {"loss": float("nan")})
    assert sealed_json.read(tmp_path / "result.json") == CONTENT


@pytest.mark.parametrize("old", ["1.25", "null", '"name"', '"digest": "'])
def test_a_changed_content_is_an_error(tmp_path: Path, old: str) -> None:
    path = tmp_path / "result.json"
    sealed_json.write(path, CONTENT)
    text = path.read_text()
    changed = text.replace(old, old[:-1] + chr(ord(old[-1]) ^ 1))
    assert changed != text
    path.write_text(changed)
    with pytest.raises(CorpusError, match="does not match its digest"):
        sealed_json.read(path)


@pytest.mark.parametrize(
    "content", ['{"loss": 1.25, "dig', "[]", '"digest"', "{}", '{"a": NaN, "digest": "x"}', "\xff"]
)
def test_what_is_no_sealed_content_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(CorpusError, match="does not match its digest"):
        sealed_json.read(path)
