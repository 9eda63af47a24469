"""Promises of cluster.training that need no Ray: what is refused before cluster time is spent."""

import pytest

from cluster import training
from cluster.session import Cluster
from gpt_core.errors import CorpusError, ResourceError
from gpt_core.model import precision
from gpt_core.settings import PretrainSettings
from gpt_core.training.loop import train
from tests.unit import tiny_corpus
from tests.unit.tiny_run import Recorder, tiny_plan


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    tiny_corpus.build(folder)
    return folder


def settings_for(corpus, output, **train):
    model = {"n_layer": 1, "n_head": 1, "n_embd": 8, "num_positions": 8}
    train = {"batch_sequences": 4, "device": "cpu", **train}
    return PretrainSettings.model_validate(
        {"corpus": str(corpus), "output": str(output), "model": model, "train": train}, strict=False
    )


def test_a_corpus_smaller_than_a_batch_is_refused(corpus, tmp_path):
    assert training.resolve(settings_for(corpus, tmp_path)).plan.batch_sequences == 4
    with pytest.raises(CorpusError):
        training.resolve(settings_for(corpus, tmp_path, batch_sequences=1 << 16))


def test_a_run_of_so_many_tokens_is_one_of_whole_steps(corpus, tmp_path):
    assert training.resolve(settings_for(corpus, tmp_path, num_tokens=100)).plan.num_steps == 4  # of 4 x 8 tokens


def test_a_run_shortened_to_a_step_without_evaluation_is_not_said_to_have_nothing_held_out(corpus, tmp_path):
    recorder = Recorder(stop_after=3)  # evaluated after the second
    train(tiny_plan(corpus, tmp_path), observer=recorder)
    assert training._summary(str(tmp_path)).validation_loss == recorder.metrics[2]["validation_loss"]


def test_bf16_on_a_machine_of_its_own_without_instructions_for_it_is_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_cpu_has", lambda question: False)
    settings = settings_for(corpus, tmp_path, precision="bf16")
    inputs, here = training.resolve(settings), Cluster(None, num_cpus=1, num_gpus=0)
    with pytest.raises(ResourceError, match="bf16 on a cpu without bf16 instructions"):
        training.fit("pretrain", settings.train, inputs, here, None)  # pyright: ignore[reportArgumentType]


def test_gpus_that_a_machine_of_its_own_lacks_are_not_waited_for(corpus, tmp_path):
    settings = settings_for(corpus, tmp_path, device="gpu")
    with pytest.raises(ResourceError, match=r"train.device gpu: .* a need of 1 GPUs; .* the 0 GPUs of this machine"):
        training.fit("pretrain", settings.train, training.resolve(settings), Cluster(None, 2, 0), None)  # pyright: ignore[reportArgumentType]
