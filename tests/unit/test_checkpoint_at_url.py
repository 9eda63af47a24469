"""A checkpoint in an object store is whole or not there, as one on a disk is, though nothing can be renamed there."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt_core.errors import CheckpointError
from gpt_core.model.presets import ModelShape
from gpt_core.storage import Storage
from gpt_core.tokens.train_tokenizer import write_ranks
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import DamagedCheckpointWarning, Description
from tests.s3_server import Proxy, s3_bucket

SHAPE = ModelShape(1, 1, 8, 4, 16)
WEIGHTS = {"wte.weight": torch.arange(128, dtype=torch.float32).view(16, 8), "ln_f.bias": torch.ones(8)}
STATE = {f"first_moment/{name}": tensor * 2 for name, tensor in WEIGHTS.items()}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("checkpoints") as url:
        yield url


@pytest.fixture
def run(bucket: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a run without checkpoints; nothing may appear in the current folder."""
    monkeypatch.chdir(tmp_path)
    yield f"{bucket}/{request.node.name}"
    assert not any(path.name.startswith("s3") for path in tmp_path.iterdir())


def write(run: str, step: int, loss: float = 4.0, tokenizer: str = "gpt2") -> str:
    description = Description(step, step * 8, SHAPE, tokenizer={"name": tokenizer}, metrics={"validation_loss": loss})
    return str(checkpoint.write(run, description, WEIGHTS, STATE))


def names_in(run: str) -> list[str]:
    return sorted(name for name, _ in Storage.of(run).list_files(run))


def change(url: str, data: bytes) -> None:
    Storage.of(url).write_atomically(url, lambda file: file.write(data))


def read(url: str) -> bytes:
    with Storage.of(url).open_read(url) as file:
        return file.read()


def test_what_is_written_is_what_is_loaded_and_has_the_bytes_of_a_local_one(run: str, tmp_path: Path) -> None:
    local, remote = write(str(tmp_path / "run"), 3), write(run, 3)
    assert remote == f"{run}/checkpoints/step-00000003"
    for place in (run, remote):
        loaded = checkpoint.load(place)
        assert str(loaded.path) == remote
        assert loaded.description == checkpoint.load(local).description
        assert loaded.weights.keys() == WEIGHTS.keys()
        assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in WEIGHTS.items())
        assert all(torch.equal(loaded.load_optimizer()[name], tensor) for name, tensor in STATE.items())
    for name in ("weights.safetensors", "optimizer.safetensors", "checkpoint.json"):
        assert read(f"{remote}/{name}") == Path(local, name).read_bytes()


def test_a_vocabulary_travels_with_its_checkpoint(run: str, tmp_path: Path) -> None:
    write_ranks(str(tmp_path / "own.tiktoken"), {bytes([byte]): byte for byte in range(256)})
    path = write(run, 1, tokenizer=str(tmp_path / "own.tiktoken"))
    carried = checkpoint.load(path).tokenizer["name"]
    assert carried == f"{path}/vocabulary.tiktoken"
    assert read(carried) == (tmp_path / "own.tiktoken").read_bytes()


def test_a_run_without_checkpoints_has_none(run: str) -> None:
    assert checkpoint.list_paths(run) == []
    assert checkpoint.load_newest(run) is None
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        checkpoint.load(run)


def test_an_upload_that_was_torn_is_ignored_and_written_again(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, 5)
    whole = Storage.write_atomically

    def die_at_the_optimizer(self: Storage, path: str, fill: object) -> None:
        if path.endswith("optimizer.safetensors"):
            raise KeyboardInterrupt
        whole(self, path, fill)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write_atomically", die_at_the_optimizer)
        with pytest.raises(KeyboardInterrupt):
            write(run, 6)
    assert "checkpoints/step-00000006/weights.safetensors" in names_in(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.load(run).step == 5
    checkpoint.delete_leftovers(run)
    assert not any("step-00000006" in name for name in names_in(run))
    write(run, 6)
    assert checkpoint.load(run).step == 6


def test_an_older_one_of_the_same_step_counts_no_more_once_its_files_change(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, 5)
    monkeypatch.setattr(checkpoint, "write_tensors", lambda file, tensors: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        write(run, 5)
    assert checkpoint.list_paths(run) == []


def test_a_damaged_one_is_passed_over_and_set_aside(run: str) -> None:
    write(run, 5)
    weights = f"{write(run, 6)}/weights.safetensors"
    data = bytearray(read(weights))
    data[len(data) // 2] ^= 4
    change(weights, bytes(data))
    with pytest.warns(DamagedCheckpointWarning, match="step-00000006"):
        assert checkpoint.load(run).step == 5
    checkpoint.set_aside_after(run, 5)
    assert [str(path) for path in checkpoint.list_paths(run)] == [f"{run}/checkpoints/step-00000005"]
    assert read(f"{run}/checkpoints/damaged-step-00000006/weights.safetensors") == bytes(data)


def test_pruning_keeps_the_newest_and_the_best_and_clears_leftovers(run: str) -> None:
    for step, loss in ((1, 5.0), (2, 3.0), (3, 4.0), (4, 4.5), (5, 4.2)):
        write(run, step, loss)
    change(f"{run}/checkpoints/step-00000006/weights.safetensors", b"half")
    checkpoint.prune(run, keep=2)
    assert {name.split("/")[1] for name in names_in(run)} == {f"step-0000000{step}" for step in (2, 4, 5)}


def test_a_store_that_cannot_be_reached_is_no_damage(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, 5)
    found = checkpoint.load(run)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")

    def refused(self: Storage, path: str) -> None:
        raise OSError(f"AWS Error ACCESS_DENIED for {path}")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "open_read", refused)
        with pytest.raises(CheckpointError, match="ACCESS_DENIED"):
            checkpoint.load_newest(run)
    assert replace(found, weights={}) == replace(checkpoint.load(run), weights={})


def test_a_store_that_asks_to_slow_down_gets_and_gives_whole_checkpoints(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(os.environ["AWS_ENDPOINT_URL"])
    asked: list[str] = []

    def mood(path: str) -> str:
        asked.append(path)
        return "slow down" if len(asked) % 3 == 1 else "pass"

    proxy.mood = mood
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    for step in (1, 2):
        write(run, step)
    checkpoint.prune(run, keep=1, best_by=None)
    newest = checkpoint.load(run)
    proxy.close()
    assert newest.step == 2
    assert torch.equal(newest.weights["wte.weight"], WEIGHTS["wte.weight"])
    assert len(asked) > 20


def test_what_a_user_keeps_beside_the_checkpoints_of_a_store_is_left_alone(run: str) -> None:
    newest = write(run, 2)
    mine = [f"{run}/checkpoints/{name}" for name in ("step-00000001-mine/checkpoint.json", "step-notes/a.txt")]
    for url in mine:
        change(url, b"mine")
    checkpoint.prune(run, keep=1, best_by=None)
    assert [str(path) for path in checkpoint.list_paths(run)] == [newest]
    assert [read(url) for url in mine] == [b"mine"] * 2
