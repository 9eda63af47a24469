"""Promises of gpt_core.storage on local folders and on fsspec's memory file system."""

import errno
import secrets
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from gpt_core.documents.source_files import SourceSpec, list_files
from gpt_core.errors import CorpusError, ResourceError
from gpt_core.storage import Storage, Url, full_disk_named, is_url, local_folder, location


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty folder."""
    return Storage.of(tmp_path if request.param == "local" else f"memory://{secrets.token_hex(4)}")


def test_what_was_written_is_read(storage: Storage) -> None:
    path = storage.join("folder", "file")
    storage.write_atomically(path, lambda file: file.write(b"0123456789"))

    assert storage.exists(path)
    assert storage.is_file(path)
    assert not storage.is_file(storage.join("folder"))
    assert storage.num_bytes(path) == 10
    with storage.open_read(path) as file:
        assert file.read(3) == b"012"
        file.seek(7)
        assert file.read() == b"789"


def test_writing_again_replaces(storage: Storage) -> None:
    for content in (b"old and long", b"new"):
        storage.write_atomically(storage.join("file"), lambda file, content=content: file.write(content))

    with storage.open_read(storage.join("file")) as file:
        assert file.read() == b"new"


def test_a_failed_write_leaves_what_was_there_and_nothing_else(storage: Storage) -> None:
    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    storage.write_atomically(storage.join("file"), lambda file: file.write(b"old"))
    with pytest.raises(OSError, match="No space left"):
        storage.write_atomically(storage.join("file"), fail)

    assert list(storage.list_files(storage.root)) == [("file", 3)]


def test_listing_walks_all_folders(storage: Storage) -> None:
    for name in ("b", "a/b", "a/c/d"):
        storage.write_atomically(storage.join(*name.split("/")), lambda file: file.write(b"x"))

    assert sorted(storage.list_files(storage.root)) == [("a/b", 1), ("a/c/d", 1), ("b", 1)]


def test_removing_what_is_not_there_is_no_error(storage: Storage) -> None:
    path = storage.join("file")
    storage.remove(path)
    storage.write_atomically(path, lambda file: file.write(b"x"))
    storage.remove(path)

    assert not storage.exists(path)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    storage, seen = Storage.of(tmp_path), []

    def write(file: Any) -> None:
        file.write(b"x" * 1_000_000)
        seen.append(storage.exists(storage.join("file")))

    storage.write_atomically(storage.join("file"), write)

    assert seen == [False]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "github://x"])
def test_a_scheme_that_nothing_opens_is_a_clear_error(url: str) -> None:
    with pytest.raises(CorpusError, match=r"://: found .*; expected a scheme that pyarrow or fsspec can open"):
        Storage.of(url).exists(url)


def test_a_file_of_a_web_server_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp", reason="fsspec's package for http")
    (tmp_path / "some.txt").write_bytes(b"0123456789")
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/some.txt"
        (file,) = list_files(SourceSpec("s", (url,)))
        assert (file.path, file.num_bytes) == (url, 10)
        with Storage.of(url).open_read(url) as opened:
            assert opened.read() == b"0123456789"
        server.shutdown()


def test_a_full_disk_is_named_where_the_folder_is_not_made_yet(tmp_path: Path) -> None:
    place = str(tmp_path / "not" / "made")
    with (
        pytest.raises(ResourceError, match=r"made: found No space left on device \(\d+ bytes free\); expected room"),
        full_disk_named(place, "room"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("place", "expected"), [("s3://a/b", True), ("/a/b", False), ("a", False)])
def test_urls_are_told_from_paths(place: str, expected: bool) -> None:
    assert is_url(place) is expected


def test_a_moved_folder_has_its_files_under_the_new_name_alone(storage: Storage) -> None:
    for name in ("old/a", "old/b/c", "new/left-over"):
        storage.write_atomically(storage.join(*name.split("/")), lambda file, name=name: file.write(name.encode()))
    storage.move_folder(storage.join("old"), storage.join("new"))
    assert sorted(storage.list_files(storage.root)) == [("new/a", 5), ("new/b/c", 7)]


def test_a_file_is_on_disk_while_it_is_used(storage: Storage) -> None:
    storage.write_atomically(storage.join("file"), lambda file: file.write(b"content"))
    with storage.on_disk(storage.join("file")) as path:
        assert path.read_bytes() == b"content"
    assert path.exists() != is_url(storage.root)
    with pytest.raises(FileNotFoundError), storage.on_disk(storage.join("none")) as path:
        path.read_bytes()


def test_a_url_keeps_its_slashes_and_a_path_stays_a_path(tmp_path: Path) -> None:
    url = location("s3://bucket/run/") / "checkpoints"
    assert (str(url), url.name, str(url.parent)) == ("s3://bucket/run/checkpoints", "checkpoints", "s3://bucket/run")
    assert isinstance(url, Url)
    assert location(url) is url
    assert location(str(tmp_path)) == location(tmp_path) == tmp_path


def test_outputs_in_stores_have_local_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # printf 's3://bucket/a/run' | sha256sum
    assert local_folder("s3://bucket/a/run") == tmp_path / "runs" / "s3-bucket-a-run-ebb87dd6"
    assert local_folder("s3://bucket/a/run/") == local_folder("s3://bucket/a/run")
    assert len({local_folder(f"s3://bucket/a{sign}run") for sign in "/-_"}) == 3
    assert local_folder(str(tmp_path / "run")) == tmp_path / "run"
