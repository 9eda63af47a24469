"""A finished job that is run again does nothing but send, and complete, the records its store did not take."""

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import stages
from cluster.recording.journal import read_all
from cluster.recording.replay import JOURNAL_NAME
from cluster.tracking import TrackingOptions, open_run, runs
from gpt_core import sealed_json
from gpt_core.errors import ResourceError, StaleOutputError
from gpt_core.settings import ClusterSettings, TokenizeJob, TrackingSettings
from gpt_core.storage import Storage
from gpt_core.training import checkpoint
from tests.tiny_checkpoint import write_tiny_checkpoint

ROOT = Path(__file__).parents[2]


def test_records_that_no_store_took_are_sent_once_by_the_next_run(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, database = tmp_path / "output", shutil.copy(empty_database, tmp_path / "mlflow.db")
    with open_run(TrackingOptions(enabled=False, system_seconds=None), name="a", kind="pretrain", output=output) as run:
        for step in range(1, 100):
            run.log_metrics({"loss": 1 / step}, step=step)
    job = SimpleNamespace(output=str(output), tracking=TrackingSettings(uri=f"sqlite:///{database}"))
    stage: Any = SimpleNamespace(resolve=lambda settings: None, finished=lambda settings, inputs: "made")

    assert stages.run_alone("pretrain", stage, job) == "made"
    assert "has now taken all records" in capsys.readouterr().err
    with sqlite3.connect(database) as connection:
        steps = connection.execute("select step, count(*) from metrics where key = 'loss' group by step").fetchall()
        statuses = connection.execute("select status from runs").fetchall()
    assert steps == [(step, 1) for step in range(1, 100)]
    assert statuses == [("FINISHED",)]

    monkeypatch.setattr(runs, "replay", lambda *_: pytest.fail("nothing waits"))
    assert stages.run_alone("pretrain", stage, job) == "made"


def test_a_store_that_is_still_away_is_told_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "replay", lambda *_: False)
    with open_run(TrackingOptions(enabled=False, system_seconds=None), name="a", kind="pretrain", output=tmp_path):
        pass
    job = SimpleNamespace(output=str(tmp_path), tracking=TrackingSettings(uri="http://127.0.0.1:9"))
    stage: Any = SimpleNamespace(resolve=lambda settings: None, finished=lambda settings, inputs: "made")
    assert stages.run_alone("pretrain", stage, job) == "made"
    assert "has not taken all records; a rerun sends those" in capsys.readouterr().err


def test_a_result_of_another_checkpoint_of_the_run_names_both(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "run", seed=1)
    first = checkpoint.path_of(tmp_path / "run", 1)
    second = shutil.move(write_tiny_checkpoint(tmp_path / "other", seed=2) / "checkpoints" / first.name, f"{first}0")
    for made, told in ((checkpoint.weights_digest(first), str(first)), ("0" * 64, "0" * 64)):
        sealed_json.write(tmp_path / "out.json", {"settings": {"checkpoint": made}})
        settings = {"checkpoint": checkpoint.weights_digest(second)}
        with pytest.raises(StaleOutputError, match=f"checkpoint: found one of '{told}'; expected '{second}'"):
            stages.made_already(str(tmp_path), "out.json", settings, "one of", Path(second))


def key_of_a_run(folder: Path, output: str) -> str:
    """Open a job's run in this folder and return the key that finds it in MLflow."""
    folder.mkdir(exist_ok=True)
    job = TokenizeJob(input=("text",), output=output, tracking=TrackingSettings(enabled=False))
    with contextlib.chdir(folder), stages.stages_of(job, "tokenize", output) as (_, run):
        return next(read_all(run.folder / JOURNAL_NAME))["key"]


def test_a_job_at_a_url_is_one_run_wherever_it_is_run_again(tmp_path: Path) -> None:
    first = key_of_a_run(tmp_path / "one", "memory://keys/a")
    assert key_of_a_run(tmp_path / "other", "memory://keys/a") == first
    assert key_of_a_run(tmp_path / "other", "memory://keys/b") != first


def test_an_output_at_a_url_that_was_deleted_begins_a_new_run(tmp_path: Path) -> None:
    url = "memory://keys/again"
    first = key_of_a_run(tmp_path / "one", url)
    Storage.of(url).remove_folder(url)
    shutil.rmtree(tmp_path / "one")
    assert key_of_a_run(tmp_path / "one", url) != first


@pytest.mark.parametrize("stage_output", ["pipeline/corpus", "pipeline", "memory://excluding/corpus"])
def test_a_stage_of_a_pipeline_and_the_same_job_alone_keep_each_other_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage_output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "connect", lambda _: contextlib.nullcontext(SimpleNamespace(address=None)))
    tracking = TrackingSettings(enabled=False)
    job: Any = TokenizeJob(input=("text",), output=stage_output, tracking=tracking)
    whole: Any = SimpleNamespace(model_dump=lambda mode: {}, tracking=tracking, cluster=ClusterSettings())
    refused = pytest.raises(ResourceError, match="at work in it; expected one job at a time in an output folder")

    def perform(*_: object) -> str:
        with refused:
            stages.run_alone("tokenize", stage, job)
        return "made"

    stage: Any = SimpleNamespace(resolve=lambda _: None, finished=lambda *_: None, perform=perform)
    with stages.stages_of(whole, "pipeline", "pipeline") as (running, _):
        assert running.run("tokenize", stage, job) == "made"
        if stage_output != "pipeline":
            with stages.stages_of(job, "tokenize", job.output), refused:
                running.run("tokenize", stage, job)


JOB = """
import contextlib, os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from cluster import stages
from gpt_core.settings import ClusterSettings, TokenizeJob, TrackingSettings

class Stage:
    def resolve(self, settings):
        return "inputs"

    def finished(self, settings, inputs):
        committed = Path(settings.output, "manifest.json")
        return committed.read_text() if committed.exists() else None

    def perform(self, settings, inputs, cluster, run):
        Path(settings.output, "manifest.json").write_text("digest")
        os.kill(os.getpid(), signal.SIGKILL)

    def record(self, run, settings, inputs, result):
        run.log_metrics({"documents": 3.0}, step=0)
        run.log_dataset("corpus", result, settings.output, context="output")
        run.set_tags({"herd.corpus": result})
        run.log_artifact(Path(settings.output, "manifest.json"))
        run.log_model("step-1", step=1, metrics={"loss": 2.5})

kind, output, uri = sys.argv[1:]
stages.connect = lambda settings: contextlib.nullcontext(SimpleNamespace(address=None))
tracking = TrackingSettings(uri=uri)
job = TokenizeJob(input=("text",), output=output, tracking=tracking)
if kind == "alone":
    stages.run_alone("tokenize", Stage(), job)
else:
    whole = SimpleNamespace(model_dump=lambda mode: {}, tokenize=job, tracking=tracking, cluster=ClusterSettings())
    done = stages.done_already(whole, {"tokenize": Stage()})
    with stages.stages_of(whole, "pipeline", str(Path(output).parent / "pipeline"), done) as (running, _):
        running.run("tokenize", Stage(), job)
"""


@pytest.mark.parametrize("kind", ["alone", "in a pipeline"])
def test_a_driver_killed_after_its_commit_leaves_a_run_that_the_next_start_completes(
    kind: str, tmp_path: Path, empty_database: Path
) -> None:
    database = shutil.copy(empty_database, tmp_path / "mlflow.db")
    command = [sys.executable, "-c", JOB, kind]
    command += [str(tmp_path / "output"), f"sqlite:///{database}"]

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert start().returncode == -signal.SIGKILL
    for _ in range(2):  # the second finds nothing to do
        done = start()
        assert done.returncode == 0, done.stderr
        assert "skipped" in done.stderr
        with sqlite3.connect(database) as connection:
            rows = {
                name: connection.execute(query).fetchall()
                for name, query in {
                    "statuses": "select distinct status from runs",
                    "metrics": "select step, value, count(*) from metrics where key = 'documents' group by run_uuid",
                    "tags": "select value from tags where key = 'herd.corpus'",
                    "datasets": "select name, digest from datasets",
                    "models": "select name from logged_models",
                    "losses": "select key, step, count(*) from metrics where key = 'checkpoint/loss' group by step",
                }.items()
            }
        assert rows == {
            "statuses": [("FINISHED",)],
            "metrics": [(0, 3.0, 1)],
            "tags": [("digest",)],
            "datasets": [("corpus", "digest")],
            "models": [("step-1",)],
            "losses": [("checkpoint/loss", 1, 1)],
        }
        assert len(list(tmp_path.rglob("artifacts/manifest.json"))) == 1
