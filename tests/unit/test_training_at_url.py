"""A training run whose output is a store, resumed there by another machine, is the local run to the bit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpt_core.errors import CheckpointError
from gpt_core.storage import Storage
from gpt_core.training import checkpoint
from gpt_core.training.history import compare
from gpt_core.training.loop import train
from gpt_core.training.recompute_step import replay
from gpt_core.training.training_plan import TrainingPlan
from tests.s3_server import s3_bucket
from tests.unit import tiny_corpus
from tests.unit.tiny_run import Recorder, digest_of, logged, tiny_plan

LINE = b'{"do": "metrics", "step": 1, "metrics": {"loss": 3.5}}\n'


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("training") as url:
        yield url


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_corpus.build(tmp_path_factory.mktemp("corpus")).folder)


def plan_at(corpus: str, output: str) -> TrainingPlan:
    return replace(tiny_plan(corpus, output), num_steps=10, checkpoint_every_steps=2)


def test_ten_steps_in_two_parts_at_a_url_are_ten_steps_on_a_disk(
    bucket: str, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = Recorder()
    train(plan_at(corpus, str(tmp_path / "calm")), observer=calm)
    url = f"{bucket}/parts"
    first, second = Recorder(stop_after=5), Recorder()
    for machine, recorder in (("one", first), ("other", second)):
        (tmp_path / machine).mkdir()
        monkeypatch.chdir(tmp_path / machine)
        summary = train(plan_at(corpus, url), observer=recorder)
        assert [path.name for path in Path().iterdir()] == ["runs"]
    assert (summary.resumed_from, summary.step) == (5, 10)
    assert str(summary.checkpoint) == f"{url}/checkpoints/step-00000010"
    assert logged(first) | logged(second) == logged(calm)
    assert digest_of(url) == digest_of(tmp_path / "calm")
    assert {name.split("/")[1] for name, _ in Storage.of(url).list_files(url) if "/" in name} <= {
        path.name for path in checkpoint.list_paths(tmp_path / "calm")
    } | {"step-00000005"}
    assert replay(url, 10).loss == calm.metrics[10]["loss"]


def test_a_run_of_other_settings_is_refused_at_a_url(
    bucket: str, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_at(corpus, f"{bucket}/begun")
    with pytest.raises(KeyboardInterrupt):
        train(plan, observer=Recorder(die_after=1))
    with pytest.raises(CheckpointError, match=r"train\.seed"):
        train(replace(plan, seed=6))


def test_the_journal_at_a_url_is_compared_as_a_local_one(bucket: str, corpus: str, tmp_path: Path) -> None:
    runs = [f"{bucket}/compared", str(tmp_path / "run")]
    for output in runs:
        train(replace(plan_at(corpus, output), num_steps=1, work_folder=str(tmp_path / "work")))
        storage = Storage.of(output)
        storage.write_atomically(storage.join("metrics.jsonl"), lambda file: file.write(LINE))
    parting = compare(*runs)
    assert (parting.settings, parting.num_common, parting.first_step) == ((), 1, None)
