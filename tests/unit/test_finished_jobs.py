"""A finished job that is run again does nothing but send the records its store did not take."""

import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import stages
from cluster.tracking import TrackingOptions, open_run, runs
from gpt_core.settings import TrackingSettings


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
