"""Planned-shard jobs: every plan once, whatever fails on the way."""

import functools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.session import Cluster, cause_of
from cluster.shard_job import ShardJob, run_shard_job
from gpt_core.errors import CorpusError, ResourceError, RunFailedError, StaleOutputError
from gpt_core.ledger import Ledger
from gpt_core.settings import PoolSettings


class _Writer:
    """Writes one file a plan; a plan named in `faults` fails in that way until its mark is there."""

    def __init__(self, folder: str, faults: dict[int, str]) -> None:
        self._folder, self._faults = Path(folder), faults

    def __call__(self, plan: int) -> dict[str, Any]:
        with (self._folder / f"calls-{plan}").open("a") as calls:
            calls.write("x")
        self._fail(plan)
        (self._folder / f"{plan}.out").write_text(str(plan * plan))
        return {"num_tokens": plan * plan}

    def _fail(self, plan: int) -> None:
        fault = self._faults.get(plan, "")
        mark = self._folder / f"mark-{plan}"
        if fault == "killed once" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "killed always":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "poison":
            raise RuntimeError("a plan nobody can do")
        if fault == "user error":
            raise CorpusError("part-7.jsonl:3", "a broken line", "JSON", "mend it")


def _job(folder: Path, faults: dict[int, str] | None = None, **changes: Any) -> ShardJob:
    given: dict[str, Any] = {
        "title": "square",
        "folder": str(folder),
        "settings": {"power": 2},
        "plans": range(12),
        "make_worker": functools.partial(_Writer, str(folder), faults or {}),
        "pool": PoolSettings(max_actors=2, max_tries=2),
    }
    return ShardJob(**{**given, **changes})


def _tokens(ledger: Ledger) -> dict[int, int]:
    return {row["index"]: row["num_tokens"] for row in ledger.rows()}


_SQUARES = {plan: plan * plan for plan in range(12)}


def test_every_plan_is_done_once(cluster: Cluster, tmp_path: Path) -> None:
    ledger = run_shard_job(_job(tmp_path), cluster)
    assert _tokens(ledger) == _SQUARES
    assert all((tmp_path / f"calls-{plan}").read_text() == "x" for plan in range(12))


def test_a_killed_worker_costs_one_shard_and_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    ledger = run_shard_job(_job(tmp_path, {5: "killed once"}), cluster)
    assert _tokens(ledger) == _SQUARES
    calls = {plan: len((tmp_path / f"calls-{plan}").read_text()) for plan in range(12)}
    assert sum(calls.values()) == 13
    assert calls[5] == 2


@pytest.mark.parametrize("fault", ["poison", "killed always"])
def test_a_poison_plan_is_named_and_the_others_finish(cluster: Cluster, tmp_path: Path, fault: str) -> None:
    with pytest.raises(RunFailedError, match=r"shard 4 of .*1 shard that failed 2 times"):
        run_shard_job(_job(tmp_path, {4: fault}), cluster)
    kept = run_shard_job(_job(tmp_path), cluster)
    assert _tokens(kept) == _SQUARES
    assert all((tmp_path / f"calls-{plan}").read_text() == "x" for plan in range(12) if plan != 4)


def test_a_user_error_keeps_its_type_and_sentence(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="broken line") as raised:
        run_shard_job(_job(tmp_path, {7: "user error"}), cluster)
    cause = cause_of(raised.value)
    assert type(cause) is CorpusError
    assert str(cause) == "part-7.jsonl:3: found a broken line; expected JSON; mend it"


def test_a_folder_begun_with_other_settings_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(RunFailedError):
        run_shard_job(_job(tmp_path, {4: "poison"}), cluster)
    with pytest.raises(StaleOutputError, match=r"power: found an unfinished job begun with 2; expected the 3"):
        run_shard_job(_job(tmp_path, settings={"power": 3}), cluster)


def test_more_cpus_than_the_cluster_has_are_refused_before_work(cluster: Cluster, tmp_path: Path) -> None:
    pool = PoolSettings(min_actors=5, cpus_per_actor=1.0)
    with pytest.raises(ResourceError, match="found a need of 5 CPUs; expected at most the 4 CPUs"):
        run_shard_job(_job(tmp_path, pool=pool), cluster)
    assert not list(tmp_path.glob("calls-*"))


class _Sleeper:
    """Takes its time, and says which process did a plan."""

    def __call__(self, plan: int) -> dict[str, Any]:
        time.sleep(0.25)
        return {"process": os.getpid()}


def test_the_pool_grows_from_its_least_to_its_most_actors(cluster: Cluster, tmp_path: Path) -> None:
    pool = PoolSettings(min_actors=1, max_actors=3)
    ledger = run_shard_job(_job(tmp_path, plans=range(60), make_worker=_Sleeper, pool=pool), cluster)
    processes = [row["process"] for row in sorted(ledger.rows(), key=lambda row: row["index"])]
    assert processes[0] == processes[1]  # one was there at the start
    assert len(processes) == 60
    assert len(set(processes)) == 3
