"""A run that goes on elsewhere from its URL has every step in its journal, each with the numbers first logged."""

from contextlib import closing
from pathlib import Path

import pytest

from cluster import training
from cluster.recording.journal import Journal, read_all
from cluster.recording.journal_copy import take_up_journal
from gpt_core.errors import ResourceError, StaleOutputError
from gpt_core.model.presets import ModelShape
from gpt_core.training import begun
from gpt_core.training.begun import Begun
from gpt_core.training.training_plan import TrainingPlan


def plan_on(machine: Path, url: str) -> TrainingPlan:
    return TrainingPlan("corpus", url, ModelShape(1, 1, 4, 4, 8), 9, 4, 1, 1, work_folder=str(machine))


def log(machine: Path, url: str, steps: range, loss: float) -> None:
    with closing(training._Reporter(plan_on(machine, url), rank=0)) as reporter:
        for step in steps:
            reporter.on_metrics(step, step * 4, {"loss": loss})
        reporter.before_checkpoint()


def sample(machine: Path, url: str, taken: list[tuple[int, str, str]]) -> None:
    machine.mkdir(exist_ok=True)
    with closing(training._Reporter(plan_on(machine, url), rank=0)) as reporter:
        for step, prompt, text in taken:
            reporter.on_sample(step, prompt, text)
        reporter.before_checkpoint()


def steps_in(machine: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["metrics"]["loss"]) for record in read_all(machine / "metrics.jsonl")]


def test_each_machine_takes_up_the_steps_that_others_trained(tmp_path: Path) -> None:
    url, first, second = "memory://journal/run", tmp_path / "first", tmp_path / "second"
    take_up_journal(first / "metrics.jsonl", url)
    log(first, url, range(1, 4), loss=1.0)
    with closing(Journal(first / "metrics.jsonl")) as journal:  # after the checkpoint, and lost with the machine
        journal.append_metrics({"loss": 1.0}, step=4)
    take_up_journal(second / "metrics.jsonl", url)
    log(second, url, range(4, 7), loss=2.0)
    take_up_journal(first / "metrics.jsonl", url)
    assert steps_in(second) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    assert steps_in(first) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0)]
    take_up_journal(first / "metrics.jsonl", url)
    assert len(steps_in(first)) == 6


def test_each_machine_takes_up_the_samples_that_others_took(tmp_path: Path) -> None:
    url, first, second = "memory://journal/samples", tmp_path / "first", tmp_path / "second"
    sample(first, url, [(2, "a", "one"), (2, "b", "two")])
    take_up_journal(second / "samples.jsonl", url)
    sample(second, url, [(4, "a", "three")])
    take_up_journal(first / "samples.jsonl", url)
    rows = [{"step": 2, "prompt": "a", "text": "one"}, {"step": 2, "prompt": "b", "text": "two"}]
    assert (
        training.samples_of(first)
        == training.samples_of(second)
        == [*rows, {"step": 4, "prompt": "a", "text": "three"}]
    )


def test_samples_are_on_the_disk_before_the_checkpoint_behind_which_they_are_not_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(Journal, "sync", lambda journal: synced.append(journal.path.name))
    sample(tmp_path, str(tmp_path), [(2, "a", "one")])
    assert "samples.jsonl" in synced


def test_a_store_that_refuses_the_journal_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("AWS Error ACCESS_DENIED")

    monkeypatch.setattr("gpt_core.storage._upload", refused)
    with pytest.raises(ResourceError, match=r"memory://journal/none/metrics\.jsonl: found AWS Error ACCESS_DENIED"):
        log(tmp_path, "memory://journal/none", range(1, 2), loss=1.0)


def test_records_of_a_run_that_was_deleted_from_its_url_are_not_mixed_with_a_new_one(tmp_path: Path) -> None:
    plan = plan_on(tmp_path, "memory://journal/deleted")
    training.check_records(plan)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(StaleOutputError, match="delete that folder"):
        training.check_records(plan)
    begun.write(Begun(None, plan))
    training.check_records(plan)


def test_a_worker_that_does_not_see_the_runs_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="a folder that all nodes share"):
        training._check_folder(tmp_path)
