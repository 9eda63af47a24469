"""Training on Ray Train: the same bits at any number of workers."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from cluster import training
from cluster.interrupts import Stopped
from cluster.recording.journal import read_all
from cluster.recording.replay import JOURNAL_NAME
from cluster.session import Cluster
from cluster.tracking import TrackingOptions, open_run
from gpt_core.errors import CheckpointError, ResourceError
from gpt_core.settings import ModelSettings, PretrainSettings, RecipeSettings, TrainSettings
from gpt_core.training import checkpoint
from tests.tiny_corpus import write_tiny_corpus

_SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "num_positions": 32, "dropout": 0.1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("data") / "corpus")


def _settings(corpus: Path, output: Path, **train: Any) -> PretrainSettings:
    given = {
        "num_steps": 6,
        "batch_sequences": 8,
        "micro_batch_sequences": 2,
        "evaluate_every_steps": 3,
        "evaluate_sequences": 8,
        "checkpoint_every_steps": 2,
    }
    return PretrainSettings(
        corpus=str(corpus),
        output=str(output),
        model=ModelSettings(**_SHAPE),
        recipe=RecipeSettings(learning_rate=1e-2, decay_tokens=1536),  # 6 steps of 8 x 32 tokens
        train=TrainSettings(**(given | train)),
    )


def _train(settings: PretrainSettings, cluster: Cluster) -> training.Trained:
    inputs = training.resolve(settings)
    options = TrackingOptions(enabled=False, system_seconds=None)
    with open_run(options, name="test", kind="pretrain", output=Path(settings.output)) as run:
        return training.perform(settings, inputs, cluster, run)


def _outcome(output: Path) -> tuple[str, str, dict[int, tuple[float, float]]]:
    """Return digests of weights and moments, and the logged loss and validation loss of every step."""
    newest = Path(str(checkpoint.load(output).path))
    weights, moments = (
        hashlib.sha256((newest / name).read_bytes()).hexdigest() for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER)
    )
    logged = {
        record["step"]: (record["metrics"]["loss"], record["metrics"].get("validation_loss"))
        for record in read_all(output / training.METRICS)
    }
    return weights, moments, logged


@pytest.fixture(scope="module")
def calm(cluster: Cluster, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six steps on two workers, which the other runs must equal."""
    output = tmp_path_factory.mktemp("calm")
    assert _train(_settings(corpus, output, num_workers=2), cluster).num_steps == 6
    assert sorted(_outcome(output)[2]) == [1, 2, 3, 4, 5, 6]
    return output


def test_a_run_whose_time_is_up_is_stopped_with_nothing_recorded_and_goes_on_to_the_same_bits(
    cluster: Cluster, corpus: Path, calm: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped, match=r"stopped at step 1 of 6 after 0.01 s"):
        _train(_settings(corpus, tmp_path, max_seconds=0.01), cluster)
    records = list(read_all(tmp_path / "tracking" / JOURNAL_NAME))
    assert [record["status"] for record in records if record["do"] == "close"] == ["KILLED"]
    assert not any(record["do"] == "model" for record in records)
    _train(_settings(corpus, tmp_path), cluster)
    assert _outcome(tmp_path) == _outcome(calm)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("num_workers", "sharding"), [(1, "none"), (4, "none"), (2, "optimizer")])
def test_weights_moments_and_losses_are_the_same_bits_for_1_2_and_4_workers_and_with_sharded_moments(
    cluster: Cluster, corpus: Path, calm: Path, tmp_path: Path, num_workers: int, sharding: str
) -> None:
    _train(_settings(corpus, tmp_path, num_workers=num_workers, sharding=sharding), cluster)
    assert _outcome(tmp_path) == _outcome(calm)


@pytest.mark.timeout(300)
def test_a_change_of_workers_in_mid_run_changes_no_bit(
    cluster: Cluster, corpus: Path, calm: Path, tmp_path: Path
) -> None:
    for last_step, num_workers in ((2, 4), (6, 1)):
        _train(_settings(corpus, tmp_path, num_steps=last_step, num_workers=num_workers), cluster)
    assert _outcome(tmp_path)[:2] == _outcome(calm)[:2]
    losses = [{step: loss for step, (loss, _) in _outcome(output)[2].items()} for output in (calm, tmp_path)]
    assert losses[0] == losses[1]


def test_a_fully_sharded_run_on_two_workers_has_the_losses_of_a_replicated_one(
    cluster: Cluster, corpus: Path, tmp_path: Path
) -> None:
    outputs = tmp_path / "replicated", tmp_path / "sharded"
    _train(_settings(corpus, outputs[0], precision="fp32"), cluster)
    sharded = {"num_workers": 2, "reduction": "fast", "sharding": "full"}
    _train(_settings(corpus, outputs[1], precision="fp32", **sharded), cluster)
    losses = [[loss for _, (loss, _) in sorted(_outcome(output)[2].items())] for output in outputs]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_a_finished_run_records_what_was_expected_of_it_beside_what_it_reached(calm: Path) -> None:
    records = [record for record in read_all(calm / "tracking" / JOURNAL_NAME) if record["do"] == "metrics"]
    recorded = {name: value for record in records for name, value in record["metrics"].items()}
    figures = {"tokens_per_second", "seconds", "worker_hours", "peak_memory_bytes", "checkpoint_bytes"}
    assert {f"{kind}/{figure}" for kind in ("expected", "actual") for figure in figures} <= recorded.keys()
    assert all(recorded[f"{kind}/{figure}"] > 0 for kind in ("expected", "actual") for figure in figures)


def test_a_run_with_other_settings_in_the_folder_is_refused(corpus: Path, calm: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found a run begun with train.seed 0; expected the 5 of this run"):
        training.resolve(_settings(corpus, calm, num_workers=2, seed=5))


def test_more_workers_than_cpus_are_refused(cluster: Cluster, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"found a need of 8 CPUs; expected at most the 4 CPUs"):
        _train(_settings(corpus, tmp_path, batch_sequences=16, num_workers=8), cluster)
