"""Tracking under kills and outages: a real MLflow store, counted row by row afterwards."""

import contextlib
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cluster.tracking import TrackingOptions, open_run, replay
from tests.chaos.mlflow_server import Proxy, free_port, mlflow_server

ROOT = Path(__file__).parents[2]
FINAL_STATUS_SECONDS = 30.0  # promised, from the end of the work on


def rows(database, query):
    with sqlite3.connect(database) as connection:
        return connection.execute(query).fetchall()


def metric_rows(database, experiment, metric="loss"):
    """Steps of a metric in an experiment, each with its number of rows."""
    return rows(
        database,
        "select step, count(*) from metrics join runs using (run_uuid) join experiments using (experiment_id) "
        f"where key = '{metric}' and experiments.name = '{experiment}' group by run_uuid, step order by step",
    )


def run_states(database, experiment):
    """Each status with its number of runs that are not deleted."""
    return rows(
        database,
        "select status, count(*) from runs join experiments using (experiment_id) "
        f"where experiments.name = '{experiment}' and runs.lifecycle_stage = 'active' group by status",
    )


@pytest.mark.slow
def test_job_killed_in_the_middle_and_rerun_is_one_run_with_every_step_once(tmp_path):
    output, database = tmp_path / "output", tmp_path / "mlflow.db"
    job = textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        from cluster.tracking import TrackingOptions, open_run
        first, last, kill = map(int, sys.argv[1:])
        with open_run(TrackingOptions(), name="a", kind="pretrain", output=Path({str(output)!r})) as run:
            with run.child("train") as child:
                for step in range(first, last):
                    child.log_metrics({{"loss": 1 / step, "lr": 0.1}}, step=step)
                    if step == kill:
                        while child.run_id is None:
                            pass
                        os.kill(os.getpid(), signal.SIGKILL)
    """)

    def run(*numbers):
        command = [sys.executable, "-c", job, *map(str, numbers)]
        return subprocess.run(command, cwd=ROOT, env=_environment(), check=False, capture_output=True, text=True)

    assert run(1, 2000, 1500).returncode == -signal.SIGKILL
    assert {status for status, _ in run_states(database, "gpt-herd")} == {"RUNNING"}
    done = run(1001, 1800, 0)
    assert done.returncode == 0, done.stderr
    assert metric_rows(database, "gpt-herd") == [(step, 1) for step in range(1, 1800)]
    assert metric_rows(database, "gpt-herd", "lr") == [(step, 1) for step in range(1, 1800)]
    assert run_states(database, "gpt-herd") == [("FINISHED", 2)]


@pytest.mark.slow
def test_jobs_that_meet_at_a_fresh_store_all_succeed(tmp_path):
    job = (
        "import sys; from pathlib import Path; from cluster.tracking import TrackingOptions, open_run\n"
        "with open_run(TrackingOptions(), name='a', kind='tokenize', output=Path(sys.argv[1])) as run:\n"
        "    run.log_metrics({'x': 1.0}, step=1)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", job, str(tmp_path / f"output{number}")], cwd=ROOT, env=_environment())
        for number in range(2)
    ]
    assert [process.wait(100) for process in started] == [0, 0]
    assert run_states(tmp_path / "mlflow.db", "gpt-herd") == [("FINISHED", 2)]


def _environment():
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Port and folder of an mlflow server on loopback."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    with mlflow_server(folder, port):
        yield port, folder


@pytest.fixture
def proxy(server):
    made = Proxy(server[0])
    yield made
    made.shutdown()


def _train(folder, uri, experiment, disturb, **options):
    """Run a small job of 600 steps; `disturb` is told each step, and None before the end; return the end's seconds."""
    (folder / f"{experiment}.txt").write_text("x")
    options = TrackingOptions(uri, experiment, system_seconds=None, **{"closing_seconds": 60.0, **options})
    with open_run(options, name="a", kind="pipeline", output=folder / "output") as run, run.child("pretrain") as child:
        child.log_settings({"max_steps": 600})
        for step in range(1, 601):
            disturb(step)
            loss = {300: math.nan, 301: math.inf}.get(step, 1 / step)
            child.log_metrics({"loss": loss, "lr": 0.1}, step=step, tokens=step * 1024)
            time.sleep(0.005)
        child.log_dataset(f"corpus-{experiment}", "d" * 64, "/corpus")
        child.log_artifact(folder / f"{experiment}.txt")
        child.log_model(f"step-600-{experiment}", step=600, metrics={"loss": 1 / 600})
        disturb(None)
        ended = time.monotonic()
    return time.monotonic() - ended


def _assert_whole(folder, experiment):
    database = folder / "mlflow.db"
    for metric in ("loss", "lr", "tokens"):
        assert metric_rows(database, experiment, metric) == [(step, 1) for step in range(1, 601)]
    assert run_states(database, experiment) == [("FINISHED", 2)]
    assert rows(database, f"select count(*) from logged_models where name = 'step-600-{experiment}'") == [(1,)]
    assert rows(database, f"select count(*) from datasets where name = 'corpus-{experiment}'") == [(1,)]
    assert len(list((folder / "art").rglob(f"{experiment}.txt"))) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_server_that_drops_errs_and_swallows_answers_ends_with_every_row_once(tmp_path, server, proxy):
    chance = random.Random(0)
    proxy.mood = lambda: chance.choices(["pass", "drop", "error", "swallow"], [6, 1, 1, 2])[0]
    proxy.delay_seconds = 0.05
    _train(tmp_path, proxy.uri, "unreliable", lambda step: None)
    _assert_whole(server[1], "unreliable")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_outage_in_the_middle_is_made_up_for_when_the_server_is_back(tmp_path, server, proxy, capsys):
    told = ""

    def disturb(step):
        nonlocal told
        if step == 200:
            proxy.mood = lambda: "drop"
        if step is None:
            while "does not answer" not in told:
                time.sleep(0.1)
                told += capsys.readouterr().err
            proxy.mood = lambda: "pass"

    assert _train(tmp_path, proxy.uri, "outage", disturb) < FINAL_STATUS_SECONDS
    _assert_whole(server[1], "outage")
    told += capsys.readouterr().err
    assert told.count("does not answer") == 1
    assert told.count("answers again") == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_server_killed_in_the_middle_and_started_again_has_every_row_once(tmp_path, capsys):
    port, told = free_port(), ""
    with contextlib.ExitStack() as servers:
        servers.enter_context(mlflow_server(tmp_path, port))

        def disturb(step):
            nonlocal told
            if step == 200:
                servers.close()  # SIGKILL: from now on connections are refused
            if step is None:
                while "does not answer" not in told:
                    time.sleep(0.1)
                    told += capsys.readouterr().err
                servers.enter_context(mlflow_server(tmp_path, port))

        seconds = _train(tmp_path, f"http://127.0.0.1:{port}", "killed", disturb)
    _assert_whole(tmp_path, "killed")
    assert seconds < FINAL_STATUS_SECONDS
    assert told.count("does not answer") == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_server_of_two_seconds_a_call_has_the_final_statuses_in_time_and_later_the_rest(tmp_path, server, proxy):
    proxy.delay_seconds = 2.0
    seconds = _train(tmp_path, proxy.uri, "slow", lambda step: None, closing_seconds=TrackingOptions().closing_seconds)
    assert seconds < FINAL_STATUS_SECONDS
    assert run_states(server[1] / "mlflow.db", "slow") == [("FINISHED", 2)]
    proxy.delay_seconds = 0.0
    replay(TrackingOptions(proxy.uri, "slow"), tmp_path / "output", seconds=100.0)
    _assert_whole(server[1], "slow")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_server_away_at_the_end_gets_the_rest_from_a_later_replay(tmp_path, server, proxy):
    output, database = tmp_path / "output", server[1] / "mlflow.db"
    options = TrackingOptions(proxy.uri, "away", system_seconds=None)
    with open_run(options, name="a", kind="pretrain", output=output) as run:
        run.log_metrics({"loss": 1.0}, step=1)
        while run.run_id is None:
            time.sleep(0.01)
        proxy.mood = lambda: "swallow"
        for step in range(2, 100):
            run.log_metrics({"loss": 1.0}, step=step)
        ended = time.monotonic()
    assert time.monotonic() - ended < FINAL_STATUS_SECONDS  # the job waits no longer for who does not answer
    proxy.mood = lambda: "pass"
    assert replay(options, output, seconds=60.0)
    assert metric_rows(database, "away") == [(step, 1) for step in range(1, 100)]
    assert run_states(database, "away") == [("FINISHED", 1)]
