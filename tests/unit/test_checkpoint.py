"""Promises of gpt_core.training.checkpoint."""

import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpt_core.errors import CheckpointError
from gpt_core.model.presets import ModelShape
from gpt_core.training import checkpoint, checkpoint_folder
from gpt_core.training.checkpoint import DamagedCheckpointWarning, Description

SHAPE = ModelShape(1, 1, 8, 4, 16)
DESCRIPTION = Description(
    step=100,
    tokens=4096,
    shape=SHAPE,
    recipe={"learning_rate": 6e-4},
    settings={"seed": 3},
    corpus_digest="ab" * 32,
    tokenizer={"name": "gpt2", "vocabulary_size": 50257},
    metrics={"validation_loss": 4.0},
)


def make_tensors(seed=0):
    flat = torch.randn(100, generator=torch.Generator().manual_seed(seed))
    return {"wte.weight": flat[:32].view(4, 8), "ln_f.bias": flat[32:40]}


def write(folder, step=100, loss=4.0):
    weights = make_tensors(step)
    moments = {f"first_moment/{name}": tensor * 2 for name, tensor in weights.items()}
    description = replace(DESCRIPTION, step=step, metrics={"validation_loss": loss})
    return Path(str(checkpoint.write(folder, description, weights, moments)))


def test_what_is_written_is_what_is_loaded(tmp_path):
    path = write(tmp_path)
    loaded = checkpoint.load(path)
    assert loaded.description == DESCRIPTION
    for name, tensor in make_tensors(100).items():
        assert torch.equal(loaded.weights[name], tensor)
        assert torch.equal(loaded.load_optimizer()[f"first_moment/{name}"], tensor * 2)


def test_the_public_library_reads_the_files(tmp_path):
    path = write(tmp_path)
    assert torch.equal(load_file(path / "weights.safetensors")["wte.weight"], make_tensors(100)["wte.weight"])


def test_the_weights_digest_names_the_weights_and_nothing_else(tmp_path):
    weights = make_tensors()
    one = checkpoint.write(tmp_path / "one", DESCRIPTION, weights, {})
    same = checkpoint.write(tmp_path / "two", replace(DESCRIPTION, step=7, metrics={}), weights, make_tensors(3))
    other = checkpoint.write(tmp_path / "three", DESCRIPTION, make_tensors(1), {})
    digests = [checkpoint.weights_digest(path) for path in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] == hashlib.sha256(Path(str(one), "weights.safetensors").read_bytes()).hexdigest()


def test_bf16_tensors_survive(tmp_path):
    weights = {"x": torch.arange(6, dtype=torch.bfloat16).view(2, 3)}
    path = checkpoint.write(tmp_path, DESCRIPTION, weights, {})
    assert torch.equal(checkpoint.load(path).weights["x"], weights["x"])


def test_a_run_folder_stands_for_its_newest_checkpoint(tmp_path):
    write(tmp_path, 9)
    write(tmp_path, 100)
    assert checkpoint.load(tmp_path).step == 100


def test_inference_needs_no_optimizer_file(tmp_path):
    path = write(tmp_path)
    (path / "optimizer.safetensors").unlink()
    loaded = checkpoint.load(path)
    assert set(loaded.weights) == set(make_tensors())
    with pytest.raises(CheckpointError, match=r"no optimizer\.safetensors"):
        loaded.load_optimizer()


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, damage, name):
    write(tmp_path, 50)
    damage(write(tmp_path, 100) / name)
    with pytest.warns(DamagedCheckpointWarning, match="step-00000100"):
        newest = checkpoint.load_newest(tmp_path)
    assert newest is not None
    assert newest.step == 50


def fail_to_read(monkeypatch, number):
    """Make every read of the optimizer file of step 100 fail as the system does with this error."""
    digest_of_file = hashlib.file_digest

    def failing(file, algorithm):
        if file.name.endswith("step-00000100/optimizer.safetensors"):
            raise OSError(number, os.strerror(number))
        return digest_of_file(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", failing)


def test_a_checkpoint_on_a_failing_sector_is_passed_over_with_a_warning(tmp_path, monkeypatch):
    write(tmp_path, 50)
    write(tmp_path, 100)
    fail_to_read(monkeypatch, errno.EIO)
    with pytest.warns(DamagedCheckpointWarning, match=r"optimizer\.safetensors: found Input/output error"):
        newest = checkpoint.load_newest(tmp_path)
    assert newest is not None
    assert newest.step == 50


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EMFILE])
def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch, number):
    write(tmp_path, 50)
    write(tmp_path, 100)
    fail_to_read(monkeypatch, number)
    with pytest.raises(CheckpointError, match="a file that can be read; mend that and run it again"):
        checkpoint.load_newest(tmp_path)


def test_every_flipped_bit_of_the_description_is_found(tmp_path):
    file = write(tmp_path) / "checkpoint.json"
    whole = file.read_bytes()
    for position in range(0, len(whole), 7):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        if json_equal(whole, file.read_bytes()):
            continue  # a changed blank between values means the same
        with pytest.raises(CheckpointError):
            checkpoint.load(file.parent)


def json_equal(first, second):
    try:
        return json.loads(first) == json.loads(second)
    except ValueError:
        return False


def test_a_crash_before_the_rename_leaves_nothing_that_counts(tmp_path, monkeypatch):
    write(tmp_path, 50)

    def crash(aside, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_folder, "_replace_folder", crash)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 100)
    assert checkpoint.load(tmp_path).step == 50
    write(tmp_path, 100)
    assert checkpoint.load(tmp_path).step == 100


def test_a_full_disk_is_one_clear_error_and_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, 50)

    def full(file, tensors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write(tmp_path, 100)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000050"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    truncate(write(tmp_path) / "weights.safetensors")
    write(tmp_path)
    assert checkpoint.load(tmp_path).step == 100


def test_pruning_keeps_the_newest_and_the_best_and_clears_leftovers(tmp_path):
    for step, loss in ((1, 5.0), (2, 3.0), (3, 4.0), (4, 4.5), (5, 4.2)):
        write(tmp_path, step, loss)
    (tmp_path / "checkpoints" / "aside-step-00000006").mkdir()
    checkpoint.prune(tmp_path, keep=2)
    assert [p.name[-1] for p in checkpoint.list_paths(tmp_path)] == ["2", "4", "5"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        checkpoint.load(tmp_path)


def test_another_format_is_refused_by_name(tmp_path):
    path = write(tmp_path)
    (path / "checkpoint.json").write_text('{"format": "something 9"}')
    with pytest.raises(CheckpointError, match="gpt-herd checkpoint 1"):
        checkpoint.load(path)


def test_another_releases_checkpoint_is_not_taken_for_damaged(tmp_path):
    write(tmp_path, 50)
    path = write(tmp_path, 100)
    (path / "checkpoint.json").write_text('{"format": "gpt-herd checkpoint 2"}')
    with pytest.raises(CheckpointError, match="use the release that wrote it"):
        checkpoint.load_newest(tmp_path)


def test_checkpoints_a_resume_has_passed_over_no_longer_count_as_newest(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    truncate(Path(str(checkpoint.path_of(tmp_path, 3)), "weights.safetensors"))
    checkpoint.set_aside_after(tmp_path, 2)
    write(tmp_path, 3)
    checkpoint.set_aside_after(tmp_path, 2)
    checkpoint.prune(tmp_path, keep=1, best_by=None)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["damaged-step-00000003", "step-00000002"]


def test_what_a_user_keeps_beside_the_checkpoints_is_left_alone(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    kept = tmp_path / "checkpoints"
    mine = [kept / name for name in ("step-00000001-keep-this", "aside-mine", "step-9", "step-99999999.bak")]
    for folder in mine:
        folder.mkdir()
    (kept / "step-notes.txt").write_text("mine")
    (kept / "step-88888888").write_text("a file")
    checkpoint.set_aside_after(tmp_path, 3)
    checkpoint.prune(tmp_path, keep=1, best_by=None)
    assert checkpoint.load(tmp_path).step == 3
    names = {path.name for path in [*mine, kept / "step-notes.txt", kept / "step-88888888", kept / "step-00000003"]}
    assert {path.name for path in kept.iterdir()} == names


def test_steps_of_nine_digits_are_newer_than_those_of_eight(tmp_path):
    for step in (99_999_999, 100_000_000):
        write(tmp_path, step)
    assert checkpoint.load(tmp_path).step == 100_000_000
    older = checkpoint.load_newest(tmp_path, before=100_000_000)
    assert older is not None
    assert older.step == 99_999_999
    assert [path.name for path in checkpoint.set_aside_after(tmp_path, 99_999_999)] == ["damaged-step-100000000"]
