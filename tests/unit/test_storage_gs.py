"""Promises of the data path on Google's storage, against an emulator on loopback."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs
import pytest
import torch

from cluster import input_guard, tokenizing
from gpt_core import sealed_json
from gpt_core import storage as storage_module
from gpt_core.corpus import manifest
from gpt_core.corpus.corpus import Corpus
from gpt_core.corpus.tokenize_shard import ShardTokenizer
from gpt_core.corpus.verify import verify
from gpt_core.errors import StaleOutputError
from gpt_core.ledger import Ledger
from gpt_core.model.presets import ModelShape
from gpt_core.settings import TokenizeSettings
from gpt_core.storage import Storage
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import DamagedCheckpointWarning, Description
from tests.corpus_text import write_sources

if importlib.util.find_spec("gcp_storage_emulator") is None:
    pytest.skip("pip install gcp-storage-emulator to test gs://", allow_module_level=True)

# In a process of its own: pyarrow's client does not always let go of the interpreter while it waits.
_SERVER = """
import sys, time
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="corpora")
server.start()
while server._api._httpd is None:
    time.sleep(0.01)
print(server._api._httpd.server_address[1], flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket."""
    words = [sys.executable, "-W", "ignore", "-c", _SERVER]
    with (
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        assert server.stdin
        assert server.stdout
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{int(server.stdout.readline())}")
        storage_module._filesystem.cache_clear()
        assert isinstance(storage_module.open_filesystem("gs://corpora")[0], pyarrow.fs.GcsFileSystem)
        yield "gs://corpora"
        storage_module._filesystem.cache_clear()
        server.stdin.close()


def test_objects_are_written_whole_listed_read_in_parts_and_removed(bucket: str) -> None:
    storage = Storage.of(f"{bucket}/basic")
    content = bytes(range(256)) * 10_000
    storage.write_atomically(storage.join("a", "b"), lambda file: file.write(content))
    assert list(storage.list_files(storage.root)) == [("a/b", len(content))]
    assert storage.changed_ns(storage.join("a", "b")) > 1.7e18
    with storage.open_read(storage.join("a", "b")) as file:
        file.seek(300)
        assert file.read(5) == content[300:305]
    with pytest.raises(RuntimeError, match="half"):
        storage.write_atomically(storage.join("c"), _failing_in_the_middle)
    assert not storage.exists(storage.join("c"))
    storage.remove_folder(storage.join("a"))
    assert not storage.exists(storage.join("a", "b"))


def _failing_in_the_middle(file: object) -> None:
    file.write(b"some")  # type: ignore[attr-defined]
    raise RuntimeError("half")


def _made(settings: TokenizeSettings) -> manifest.Manifest:
    """Make a corpus as the job does, by one worker, without Ray."""
    inputs = tokenizing.resolve(settings)
    ledger = Ledger(settings.output)
    ledger.open({})
    input_guard.check_resumed(settings.output, inputs.plans)
    worker = ShardTokenizer(tokenizing.options_for(settings, inputs, "gpt2"))
    for plan in inputs.plans:
        ledger.commit(plan.index, worker(plan))
    assert ledger.done(len(inputs.plans)).all()
    written = manifest.write(settings.output, tokenizing.contents_of(settings, inputs, ledger.rows, "gpt2"))
    ledger.remove()
    return written


def test_a_corpus_from_and_to_google_storage_is_that_of_a_disk(bucket: str, tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "text")
    remote_sources = []
    for source in sources:
        for path in Path(str(source["paths"][0])).iterdir():  # type: ignore[index]
            data = path.read_bytes()
            Storage.of(bucket).write_atomically(
                f"{bucket}/in/{source['name']}/{path.name}", lambda file, data=data: file.write(data)
            )
        remote_sources.append({**source, "paths": [f"{bucket}/in/{source['name']}"]})
    given = {"shard_bytes": 6000, "tokenizer": {"backend": "tiktoken"}, "validation_fraction": 0.2}
    local = TokenizeSettings.model_validate({**given, "sources": sources, "output": str(tmp_path / "out")})
    remote = TokenizeSettings.model_validate({**given, "sources": remote_sources, "output": f"{bucket}/out"})
    made = [_made(settings) for settings in (remote, local)]
    assert made[0].shards.to_pylist() == made[1].shards.to_pylist()
    assert made[0].root_digest == made[1].root_digest
    assert verify(remote.output) == []
    folders = {name.split("/")[0] for name, _ in Storage.of(remote.output).list_files(remote.output)}
    assert folders == {
        "train",
        "validation",
        "rejects",
        "manifest.json",
        "shards.arrow",
        "batches.arrow",
        "files.arrow",
    }
    near, far = Corpus(local.output), Corpus(remote.output)
    order = near.order(seed=1, window_tokens=16, sequences_per_step=4)
    assert far.batch(order, 3).tolist() == near.batch(order, 3).tolist()

    assert tokenizing.finished(remote, tokenizing.resolve(remote)) is not None
    edited = f"{bucket}/in/books/00.txt"
    with Storage.of(edited).open_read(edited) as file:
        data = file.read()
    Storage.of(edited).write_atomically(edited, lambda file: file.write(bytes([data[0] ^ 1]) + data[1:]))
    with pytest.raises(StaleOutputError, match=r"contents of gs://corpora/in/books/00.txt than when the corpus was"):
        tokenizing.finished(remote, tokenizing.resolve(remote))


def test_checkpoints_are_written_listed_set_aside_and_pruned(bucket: str) -> None:
    run, weights = f"{bucket}/run", {"w": torch.arange(6.0).view(2, 3)}
    assert checkpoint.list_paths(run) == []
    assert sealed_json.read(f"{run}/begun.json") is None
    for step in range(1, 6):
        checkpoint.write(run, Description(step, step, ModelShape(1, 1, 4, 4, 8)), weights, weights)
    storage = Storage.of(run)
    storage.remove(f"{run}/checkpoints/step-00000005/optimizer.safetensors")
    with pytest.warns(DamagedCheckpointWarning, match="step-00000005"):
        newest = checkpoint.load(run)
    assert newest.step == 4
    assert torch.equal(newest.load_optimizer()["w"], weights["w"])
    checkpoint.set_aside_after(run, 4)
    checkpoint.prune(run, keep=2, best_by=None)
    folders = {name.split("/")[1] for name, _ in storage.list_files(run)}
    assert folders == {"step-00000003", "step-00000004", "damaged-step-00000005"}
