"""Runs in a real MLflow store: what they hold, how they end, and that a row is never there twice."""

import importlib
import json
import math
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.interrupts import Stopped
from cluster.recording.journal import Journal, Point
from cluster.tracking import TrackingOptions, open_run, page_command, page_line, replay
from cluster.tracking.store import MlflowStore
from gpt_core.errors import ResourceError, SettingsError
from gpt_core.settings import TrackingSettings

QUIET = TrackingOptions(system_seconds=None)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def output(tmp_path, empty_database, monkeypatch):
    """An output folder beside a store that is migrated already: migrating takes a second."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path / "output"


def rows(output, query):
    with sqlite3.connect(output.parent / "mlflow.db") as database:
        return database.execute(query).fetchall()


def metric_rows(output, metric="loss"):
    return sorted(rows(output, f"select step, count(*) from metrics where key = '{metric}' group by run_uuid, step"))


def tags(output):
    return dict(rows(output, "select key, value from tags"))


def test_importing_tracking_imports_neither_mlflow_nor_ray():
    heavy = "import cluster.tracking, sys; print({'mlflow', 'ray', 'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_run_holds_what_the_job_recorded(output):
    settings = {"model": {"n_layer": 2, "name": None}, "sources": [{"weight": 0.5}], "long": "x" * 7000}
    with open_run(QUIET, name="shakespeare", kind="pipeline", output=output) as run:
        run.log_settings(settings)
        with run.child("pretrain") as child:
            child.log_metrics({"loss": 2.5}, step=10, tokens=10240)
            child.log_metrics({"loss": 2.25}, step=20, tokens=20480)
            child.log_dataset("corpus", "d" * 64, "/corpus", profile={"num_tokens": 5})
            child.log_table([{"prompt": "Où", "text": "là"}], "samples.json")
            child.log_loss_plot()
            child.log_model("step-00000020", step=20, metrics={"loss": 2.25}, tags={"herd.checkpoint": "abc"})
    client = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{output.parent}/mlflow.db")
    parent, held = client.get_run(run.run_id), client.get_run(child.run_id)
    assert parent.data.params["model.n_layer"] == "2"
    assert parent.data.params["model.name"] == "null"
    assert json.loads(parent.data.params["sources"]) == [{"weight": 0.5}]
    assert len(parent.data.params["long"]) == 6000
    assert parent.data.params["long"].endswith("(cut; 7,000 characters in settings.yaml)")
    assert "n_layer: 2" in (artifact(client, run.run_id, "settings.yaml")).read_text()
    assert (parent.info.status, held.info.status) == ("FINISHED", "FINISHED")
    assert held.data.tags["mlflow.parentRunId"] == run.run_id
    assert [(m.step, m.value) for m in client.get_metric_history(child.run_id, "loss")] == [(10, 2.5), (20, 2.25)]
    assert [(m.step, m.value) for m in client.get_metric_history(child.run_id, "tokens")] == [(10, 10240), (20, 20480)]
    (dataset,) = held.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("corpus", "d" * 36)
    assert json.loads(dataset.dataset.profile) == {"digest": "d" * 64, "num_tokens": 5}
    assert held.data.tags["herd.dataset.training"] == "d" * 64
    assert json.loads(artifact(client, child.run_id, "samples.json").read_text("utf-8"))["data"] == [["Où", "là"]]
    assert artifact(client, child.run_id, "plots/loss.png").read_bytes().startswith(b"\x89PNG")
    (model,) = client.search_logged_models([held.info.experiment_id])
    assert (model.name, model.tags["herd.checkpoint"]) == ("step-00000020", "abc")
    assert [(m.key, m.value) for m in model.metrics] == [("checkpoint/loss", 2.25)]


@pytest.mark.parametrize("folders", [("output", "output"), ("output", "elsewhere")])
def test_a_checkpoint_that_two_starts_of_a_job_record_has_its_metrics_once(output, folders):
    for name in folders:  # where it works at a URL, the second start may be another machine's
        folder = output.parent / name
        with open_run(QUIET, name="a", kind="pretrain", output=folder, key="0123456789abcdef") as run:
            run.log_model("step-100", step=100, metrics={"loss": 2.25})
    assert metric_rows(output, "checkpoint/loss") == [(100, 1)]
    assert rows(output, "select name from logged_models") == [("step-100",)]


def stored_points(output, run_id):
    query = f"select key, step, value, is_nan from metrics where run_uuid = '{run_id}' order by key, step"
    return rows(output, query)


def test_values_that_are_no_numbers_reach_the_page_and_stop_nothing(output):
    with open_run(QUIET, name="a", kind="pretrain", output=output) as run:
        for step, value in enumerate([1.0, math.nan, math.inf, -math.inf, 2.0]):
            run.log_metrics({"loss": value}, step=step)
    largest = sys.float_info.max  # what MLflow's database holds for an infinity
    assert stored_points(output, run.run_id) == [
        ("loss", 0, 1.0, 0), ("loss", 1, 0.0, 1), ("loss", 2, largest, 0), ("loss", 3, -largest, 0), ("loss", 4, 2.0, 0)
    ]  # fmt: skip
    assert replay(QUIET, output)
    assert len(stored_points(output, run.run_id)) == 5


def test_points_sent_again_at_any_time_are_the_same_rows(output):
    """What exactly once rests on: a request may land late, after its repetition or beside it."""
    with open_run(QUIET, name="a", kind="pretrain", output=output) as run:
        pass
    store, run_id = tracking_store(output), run.run_id
    assert run_id is not None
    points = [Point("loss", step, 1000 + step, [0.1, math.nan, math.inf][step % 3]) for step in range(300)]
    store.log_points(run_id, points[:200])
    refused = []

    def send(start):
        for _ in range(50):
            try:
                return store.log_points(run_id, points[start : start + 150])
            except Exception as error:  # written at the same moment by another: to be tried again, not refused
                refused.append(store.is_refusal(error))
        raise AssertionError("never taken")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, [150, 0, 100, 150]))
    assert not any(refused)
    assert metric_rows(output) == [(step, 1) for step in range(300)]


def tracking_store(output):
    store = MlflowStore(QUIET, output.parent)
    store.connect()
    return store


def artifact(client, run_id, path):
    return Path(client.download_artifacts(run_id, path))


def test_artifacts_lie_beside_the_output_and_not_in_the_current_folder(output, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with open_run(QUIET, name="a", kind="tokenize", output=output) as run:
        run.log_settings({"a": 1})
    assert list(elsewhere.iterdir()) == []
    assert len(list((output.parent / "mlartifacts").rglob("settings.yaml"))) == 1


@pytest.mark.parametrize(
    ("error", "status", "failure"),
    [
        (ValueError("no such corpus"), "FAILED", "ValueError: no such corpus"),
        (KeyboardInterrupt(), "KILLED", None),
        (Stopped("stopped at step 3 of 9"), "KILLED", "stopped at step 3 of 9"),
        (SystemExit(130), "KILLED", None),
        (SystemExit(0), "FINISHED", None),
        (SystemExit(2), "FAILED", "SystemExit: 2"),
    ],
)
def test_status_tells_how_the_job_ended_and_a_rerun_corrects_it(output, error, status, failure):
    with pytest.raises(type(error)), open_run(QUIET, name="a", kind="pretrain", output=output) as first:
        raise error
    assert rows(output, "select run_uuid, status from runs") == [(first.run_id, status)]
    assert tags(output).get("herd.failure") == failure
    with open_run(QUIET, name="a", kind="pretrain", output=output) as again:
        again.log_metrics({"loss": 1.0}, step=1)
    assert rows(output, "select run_uuid, status from runs") == [(first.run_id, "FINISHED")]
    assert "herd.failure" not in tags(output)


def test_crash_between_sending_and_acknowledging_leaves_no_second_row(output):
    with open_run(QUIET, name="a", kind="pretrain", output=output) as run:
        for step in range(1, 50):
            run.log_metrics({"loss": 1.0}, step=step)
    state = output / "tracking" / "run.json"
    held = json.loads(state.read_text())
    state.write_text(json.dumps({**held, "offsets": {}}))
    # As a store without MLflow's own key on (metric, step, time, value) would show it: other times.
    with sqlite3.connect(output.parent / "mlflow.db") as database:
        database.execute("update metrics set timestamp = timestamp + 1")
    with open_run(QUIET, name="a", kind="pretrain", output=output) as run:
        run.log_metrics({"loss": 1.0}, step=50)
    assert metric_rows(output) == [(step, 1) for step in range(1, 51)]


def test_job_goes_on_without_a_server_and_a_later_replay_sends_all(output, capsys):
    away = TrackingOptions(uri="http://user:secret@127.0.0.1:9", system_seconds=None, closing_seconds=1.5)
    with open_run(away, name="a", kind="pretrain", output=output) as run:
        run.log_metrics({"loss": 1.0}, step=1)
        told, give_up = "", time.monotonic() + 60  # MLflow's first call imports much
        while "the job goes on" not in told and time.monotonic() < give_up:
            time.sleep(0.05)
            told += capsys.readouterr().err
    assert "the job goes on" in told
    told += capsys.readouterr().err
    assert "has not taken all records" in told
    assert "secret" not in told
    assert "secret" not in (output / "tracking" / "journal.jsonl").read_text()
    assert replay(QUIET, output)
    assert metric_rows(output) == [(1, 1)]
    assert rows(output, "select status from runs") == [("FINISHED",)]


def test_tracking_turned_off_keeps_the_journal_for_later(output):
    with open_run(TrackingOptions(enabled=False), name="a", kind="pretrain", output=output) as run:
        run.log_metrics({"loss": 1.0}, step=1)
    assert rows(output, "select count(*) from runs") == [(0,)]
    assert replay(QUIET, output)
    assert metric_rows(output) == [(1, 1)]


def test_replay_of_a_folder_without_journal_says_so(tmp_path):
    with pytest.raises(ResourceError, match="no tracking journal"):
        replay(QUIET, tmp_path)


def test_two_jobs_in_one_output_folder_are_refused(output):
    with (
        open_run(QUIET, name="a", kind="pretrain", output=output),
        pytest.raises(ResourceError, match="one job at a time in an output folder"),
        open_run(QUIET, name="b", kind="pretrain", output=output),
    ):
        pass


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns"])
def test_file_store_is_refused(tmp_path, uri):
    with (
        pytest.raises(SettingsError, match=r"tracking\.uri"),
        open_run(TrackingOptions(uri=uri), name="a", kind="pretrain", output=tmp_path / "output"),
    ):
        pass


def test_setting_changed_by_a_resumed_job_becomes_a_tag(output):
    for max_steps in (100, 200):
        with open_run(QUIET, name="a", kind="pretrain", output=output) as run:
            run.log_settings({"max_steps": max_steps})
    assert dict(rows(output, "select key, value from params")) == {"max_steps": "100"}
    assert tags(output)["herd.changed.max_steps"] == "100 -> 200"


def test_more_settings_than_one_request_takes_and_no_password(output):
    with open_run(QUIET, name="a", kind="pretrain", output=output) as run:
        run.log_settings({f"s{number}": number for number in range(250)} | {"to": "s3://me:secret@host/x"})
    params = dict(rows(output, "select key, value from params"))
    assert len(params) == 251
    assert params["to"] == "s3://host/x"


def test_rank_0_journal_is_followed_without_mlflow_in_the_worker(output):
    worker = Journal(output / "metrics.jsonl")
    worker.append_metrics({"loss": 3.0}, step=1, tokens=1024)
    with open_run(QUIET, name="a", kind="pretrain", output=output) as run:
        run.follow(worker.path)
        worker.append_metrics({"loss": 2.0}, step=2, tokens=2048)
    assert metric_rows(output) == [(1, 1), (2, 1)]
    assert metric_rows(output, "tokens") == [(1, 1), (2, 1)]


def test_short_run_has_system_metrics_of_its_own(output):
    with open_run(TrackingOptions(), name="a", kind="pretrain", output=output) as run, run.child("b"):
        pass
    counted = rows(
        output, "select count(distinct run_uuid) from metrics where key = 'system/cpu_utilization_percentage'"
    )
    assert counted == [(2,)]


def test_logs_of_mlflow_and_its_migrations_stay_silent(tmp_path, capfd):
    with open_run(QUIET, name="a", kind="pretrain", output=tmp_path / "output"):
        pass
    assert capfd.readouterr() == ("", "")


def test_page_command_names_the_store_of_the_output(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    command = page_command(TrackingSettings(), str(tmp_path / "output"))
    assert command == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert page_command(TrackingSettings(), "output") == "http://host:5000"
    assert page_line(TrackingSettings(), "output") == "\nfollow the runs: http://host:5000"
    assert page_line(TrackingSettings(enabled=False), "output") == ""


def test_page_command_works_where_the_environment_is_not_on_the_path(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    program = tmp_path / "bin" / "mlflow"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.setenv("PATH", "/usr/bin")
    assert page_command(TrackingSettings(), str(tmp_path / "output")).startswith(f"{program} ui --backend-store-uri ")
    monkeypatch.setenv("PATH", str(program.parent))
    assert page_command(TrackingSettings(), str(tmp_path / "output")).startswith("mlflow ui --backend-store-uri ")
