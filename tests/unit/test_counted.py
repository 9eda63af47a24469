"""Numbers agree with their nouns."""

from gpt_core.counted import counted


def test_one_is_one_and_all_others_are_many() -> None:
    assert [counted(number, "file") for number in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]
