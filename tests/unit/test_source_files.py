"""Promises of gpt_core.documents.source_files: which files are found, and what they are called."""

import os
import secrets
import sysconfig
from pathlib import Path

import pytest

from gpt_core.documents.source_files import SourceSpec, find_files, list_files
from gpt_core.errors import CorpusError
from gpt_core.storage import Storage

NAMES = [
    "a.txt",
    "b.jsonl.gz",
    "c.PARQUET",
    "notes",
    "picture.png",
    ".hidden.txt",
    "deep/d.md",
    "deep/.git/e.txt",
    "deep/er/f.json.zst",
    "deep/er/test_g.py",
    "tests/h.txt",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of NAMES, one byte each."""
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(*paths: str | Path, exclude: tuple[str, ...] = ()) -> list[str]:
    return [file.name for file in list_files(SourceSpec("s", tuple(map(str, paths)), exclude))]


def test_a_folder_gives_its_visible_text_and_data_files_by_name(folder: Path) -> None:
    expected = [
        "a.txt",
        "b.jsonl.gz",
        "c.PARQUET",
        "deep/d.md",
        "deep/er/f.json.zst",
        "deep/er/test_g.py",
        "tests/h.txt",
    ]

    assert names(folder) == expected
    assert find_files(SourceSpec("s", (str(folder),))).ignored.total() == len(NAMES) - len(expected)


def test_formats_follow_the_suffixes(folder: Path) -> None:
    found = {file.name: (file.format, file.compression) for file in list_files(SourceSpec("s", (str(folder),)))}

    assert found["a.txt"] == ("text", None)
    assert found["b.jsonl.gz"] == ("jsonl", "gzip")
    assert found["c.PARQUET"] == ("parquet", None)
    assert found["deep/er/f.json.zst"] == ("jsonl", "zstd")


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*", [".hidden.txt", "a.txt", "b.jsonl.gz", "c.PARQUET", "notes", "picture.png"]),
        ("*.txt", [".hidden.txt", "a.txt"]),
        ("**/*.txt", [".hidden.txt", "a.txt", "deep/.git/e.txt", "tests/h.txt"]),
        ("deep/**", [".git/e.txt", "d.md", "er/f.json.zst", "er/test_g.py"]),
        ("[ab].*", ["a.txt", "b.jsonl.gz"]),
        ("[!a-z]*", [".hidden.txt"]),
        ("deep/??/*.py", ["er/test_g.py"]),
        ("note?", ["notes"]),
    ],
)
def test_globs_match_any_suffix(folder: Path, glob: str, expected: list[str]) -> None:
    assert names(folder / glob) == expected


def test_a_named_file_is_text_whatever_its_suffix(folder: Path) -> None:
    (file,) = list_files(SourceSpec("s", (str(folder / "notes"),)))

    assert (file.name, file.format, file.num_bytes, file.path) == ("notes", "text", 1, str(folder / "notes"))


def test_excludes_match_whole_names_or_last_parts(folder: Path) -> None:
    assert names(folder, exclude=("deep/**", "*.gz", "h.*")) == ["a.txt", "c.PARQUET"]
    assert "tests/h.txt" not in names(folder, exclude=("**/tests/**",))


def test_several_paths_make_one_source_without_repeats(folder: Path) -> None:
    assert names(folder / "tests", folder / "deep", folder / "tests" / "h.txt") == [
        "d.md",
        "er/f.json.zst",
        "er/test_g.py",
        "h.txt",
    ]


@pytest.mark.parametrize("paths", [(".", "deep"), (".", "deep/d.md"), ("**/*.md", "deep/*.md"), ("**/*", "deep/**")])
def test_a_file_that_overlapping_paths_reach_is_one_file_under_the_first_of_its_names(
    folder: Path, paths: tuple[str, ...]
) -> None:
    first, second = (folder / path for path in paths)

    assert names(first, second) == names(first)
    (file,) = [file for file in list_files(SourceSpec("s", (str(second), str(first)))) if file.path.endswith("/d.md")]
    assert file.name == "d.md"


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    (folder / "tests" / "a.txt").write_bytes(b"y")

    with pytest.raises(CorpusError, match=r"source 's': found two files called a\.txt, under .* and .*tests"):
        names(folder / "*.txt", folder / "tests")


def test_the_standard_library_is_a_source() -> None:
    files = list_files(SourceSpec("s", ("$STDLIB",), ("site-packages/**", "test/**")))

    assert files[0].root == sysconfig.get_path("stdlib")
    assert {"argparse.py", "json/decoder.py"} <= {file.name for file in files}


def test_home_and_relative_paths_are_understood(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder / "deep")

    assert names("~/tests") == ["h.txt"]
    assert names("er/test_g.py") == ["test_g.py"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "found nothing at .*nothing; expected a file, folder or glob"),
        ("*.nothing", "found no file at .*nothing after exclusions"),
        ("empty", "found no file at .*empty after exclusions"),
        ("unknown", "found 2 files, none of a known suffix, at .*unknown"),
    ],
)
def test_a_path_without_files_is_a_clear_error(folder: Path, path: str, message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "unknown").mkdir()
    for name in ("a.png", "b.exe"):
        (folder / "unknown" / name).touch()

    with pytest.raises(CorpusError, match=f"source 's': {message}"):
        names(folder / path)


@pytest.mark.parametrize("glob", ["x[z-a].txt", "[!].txt"])
def test_brackets_without_a_meaning_are_a_clear_error(folder: Path, glob: str) -> None:
    for paths, exclude in [((folder / glob,), ()), ((folder,), (glob,))]:
        with pytest.raises(CorpusError, match=r"glob '.*': found .*; expected brackets such as \[a-z\] or \[!0-9\]"):
            names(*paths, exclude=exclude)


def test_a_url_without_a_folder_has_its_scheme_as_the_root() -> None:
    url, other = f"memory://{secrets.token_hex(4)}.txt", f"memory:///{secrets.token_hex(4)}.txt"
    for place in (url, other):
        Storage.of(place).write_atomically(place, lambda file: file.write(b"x"))
        for path in (place, place.replace(".txt", ".*")):
            (file,) = list_files(SourceSpec("s", (path,)))
            assert (file.path, file.name) == (place, place.rpartition("/")[2])


def test_excluding_everything_is_a_clear_error(folder: Path) -> None:
    with pytest.raises(CorpusError, match="after exclusions"):
        names(folder / "tests", exclude=("*",))


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(CorpusError) as raised:
        names(folder)
    assert str(raised.value) == (
        f"source 's': found Permission denied at {folder}/deep; expected files and folders that this user can read; "
        "make it readable, or name other paths"
    )


def test_linked_folders_are_followed_and_a_loop_ends(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far").mkdir()
    (elsewhere / "far" / "x.txt").write_bytes(b"x")
    (folder / "tests" / "linked").symlink_to(elsewhere)
    (folder / "tests" / "loop").symlink_to(folder)

    assert names(folder / "tests") == [
        "h.txt",
        "linked/far/x.txt",
        *(f"loop/{name}" for name in names(folder) if not name.startswith("tests/")),
    ]


def test_a_link_to_nothing_is_listed_so_that_its_reader_names_it(folder: Path) -> None:
    (folder / "tests" / "gone.txt").symlink_to(folder / "nowhere")

    assert names(folder / "tests") == ["gone.txt", "h.txt"]
    assert names(folder / "tests", exclude=("gone.txt",)) == ["h.txt"]


@pytest.mark.parametrize("paths", [("tests", "unknown"), ("unknown", "tests"), ("tests", "deep", "*.nothing")])
def test_every_path_has_something_to_read(folder: Path, paths: tuple[str, ...]) -> None:
    (folder / "unknown").mkdir()
    (folder / "unknown" / "a.exe").touch()

    with pytest.raises(CorpusError, match=r"at .*(unknown|nothing) after exclusions"):
        names(*(folder / path for path in paths))


@pytest.mark.parametrize("place", ["caf\udce9.txt", "caf\udce9/a.txt"])
def test_a_name_that_is_no_utf_8_is_refused_unless_it_is_excluded(folder: Path, place: str) -> None:
    (folder / "odd" / place).parent.mkdir(parents=True)
    (folder / "odd" / place).write_bytes(b"x")
    (folder / "odd" / "b.txt").write_bytes(b"x")

    with pytest.raises(CorpusError) as raised:
        names(folder / "odd")
    assert str(raised.value).startswith(
        f"source 's': found a file name that is no UTF-8, {os.fsencode(place)!r}; expected names in UTF-8; rename"
    )
    assert names(folder / "odd", exclude=("caf*", "caf*/**")) == ["b.txt"]
    with pytest.raises(CorpusError, match="no UTF-8"):
        names(folder / "odd" / "caf\udce9*" / "*.txt" if "/" in place else folder / "odd" / place)


def test_a_glob_lists_folders_as_deep_as_it_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[str] = []
    scan = os.scandir

    def spy(path: str) -> object:
        scanned.append(os.path.relpath(path, folder))
        return scan(path)

    monkeypatch.setattr("os.scandir", spy)
    assert names(folder / "*.txt") == [".hidden.txt", "a.txt"]
    assert scanned == ["."]
    scanned.clear()
    assert names(folder / "*" / "*.md") == ["deep/d.md"]
    assert sorted(scanned) == [".", "deep", "tests"]
