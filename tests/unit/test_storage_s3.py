"""Promises of the data path on S3, against a real S3 server on loopback."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs
import pytest

from gpt_core import storage as storage_module
from gpt_core.corpus.tokenize_shard import ShardTokenizer, TokenizeOptions
from gpt_core.documents.shard_plan import plan_shards
from gpt_core.documents.source_files import SourceSpec, list_files
from gpt_core.storage import Storage
from tests.s3_server import Proxy, s3_bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket on a server of this process."""
    with s3_bucket("corpora") as url:
        filesystem, _ = storage_module.open_filesystem(url)
        assert isinstance(filesystem, pyarrow.fs.S3FileSystem)
        yield url


def test_objects_are_written_whole_listed_and_read_in_parts(bucket: str) -> None:
    storage = Storage.of(f"{bucket}/basic")
    content = bytes(range(256)) * 100_000
    storage.write_atomically(storage.join("a", "b.gz"), lambda file: file.write(content))

    assert list(storage.list_files(storage.root)) == [("a/b.gz", len(content))]
    assert storage.exists(storage.join("a", "b.gz"))
    assert not storage.exists(storage.join("a", "c"))
    assert storage.num_bytes(storage.join("a", "b.gz")) == len(content)
    with storage.open_read(storage.join("a", "b.gz")) as file:
        file.seek(20_000_001)
        assert file.read(5) == bytes([1, 2, 3, 4, 5])


def test_a_failed_write_makes_no_object(bucket: str) -> None:
    storage = Storage.of(f"{bucket}/failed")
    with pytest.raises(ZeroDivisionError):
        storage.write_atomically(storage.join("a"), lambda file: file.write(b"x") / 0)

    assert not storage.exists(storage.join("a"))


def test_shards_from_and_to_s3_are_those_from_and_to_a_disk(bucket: str, tmp_path: Path) -> None:
    texts = [f"text {number} of several\n" for number in range(500)]
    content = "\n".join([*(json.dumps({"text": text}) for text in texts), "broken"]).encode()
    Storage.of(tmp_path).write_atomically(f"{tmp_path}/in/a.jsonl", lambda file: file.write(content))
    Storage.of(bucket).write_atomically(f"{bucket}/in/a.jsonl", lambda file: file.write(content))

    written = []
    for place in (str(tmp_path), bucket):
        plans = plan_shards(list_files(SourceSpec("s", (f"{place}/in/*.jsonl",))), 10_000)
        worker = ShardTokenizer(TokenizeOptions(f"{place}/out", backend="tiktoken", validation_fraction=0.2))
        rows = [worker(plan) for plan in plans]
        storage = Storage.of(f"{place}/out")
        files = {}
        for name, _ in storage.list_files(storage.root):
            with storage.open_read(storage.join(name)) as file:
                files[name] = file.read()
        written.append((plans.fingerprint, rows, files))

    assert written[0] == written[1]
    assert len(written[0][2]) == 5


def test_a_store_that_asks_to_slow_down_gets_and_gives_everything(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Counter()

    def mood(path: str) -> str:
        asked["all"] += 1
        return "slow down" if asked["all"] % 3 == 1 else "pass"

    proxy = Proxy(os.environ["AWS_ENDPOINT_URL"])
    proxy.mood = mood
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    storage = Storage.of(f"{bucket}/slow")
    content = {f"part-{number}": bytes([number]) * 1000 for number in range(2)}
    for name, data in content.items():
        storage.write_atomically(storage.join(name), lambda file, data=data: file.write(data))
    found = {}
    for name, _ in storage.list_files(storage.root):
        with storage.open_read(storage.join(name)) as file:
            found[name] = file.read()
    proxy.close()
    assert found == content
    assert asked["all"] > 4 * len(content)  # three requests make an object and one reads it
