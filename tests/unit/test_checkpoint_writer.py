"""Promises of gpt_core.training.checkpoint_writer."""

import threading

import pytest
import torch

from gpt_core.errors import CheckpointError
from gpt_core.model.presets import ModelShape
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Description
from gpt_core.training.checkpoint_writer import CheckpointWriter


def describe(step):
    return Description(step, step * 10, ModelShape(1, 1, 4, 4, 8), metrics={"loss": 1.0})


@pytest.fixture
def told():
    return []


@pytest.fixture
def writer(tmp_path, told):
    writer = CheckpointWriter(str(tmp_path), 1, lambda path, step, metrics: told.append((path.name, step)))
    yield writer
    writer.close()


def test_a_checkpoint_is_reported_once_it_is_committed_and_older_ones_go(writer, told, tmp_path):
    for step in (1, 2):
        writer.begin(describe(step), {"x": torch.ones(2)}, {})
        writer.wait()
    assert told == [("step-00000001", 1), ("step-00000002", 2)]
    assert [path.name for path in checkpoint.list_paths(tmp_path)] == ["step-00000002"]


def test_the_training_thread_goes_on_while_a_write_is_under_way(writer, told, monkeypatch):
    release, write = threading.Event(), checkpoint.write

    def slow(*arguments):
        release.wait(10)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write", slow)
    writer.begin(describe(1), {"x": torch.ones(2)}, {})
    writer.poll()
    assert told == []
    release.set()
    writer.wait()
    assert told == [("step-00000001", 1)]


def test_a_write_that_fails_is_raised_on_the_training_thread(writer, told, monkeypatch):
    def full(file, tensors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    writer.begin(describe(1), {"x": torch.ones(2)}, {})
    with pytest.raises(CheckpointError, match="No space left"):
        writer.wait()
    assert told == []
