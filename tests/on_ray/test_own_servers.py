"""A job's own Ray is the servers that the job needs, and no others."""

from pathlib import Path

import psutil
from ray.train import RunConfig

from cluster.own_trainer import OwnTrainer
from cluster.session import Cluster


def test_neither_a_dashboard_nor_monitors_run_beside_a_job(cluster: Cluster) -> None:
    words = [word for process in psutil.Process().children(recursive=True) for word in process.cmdline()]
    assert any(word.endswith("raylet/raylet") for word in words)
    assert [word for word in words if word.endswith(("/monitor.py", "/log_monitor.py", "/dashboard.py"))] == []


def test_no_actor_deals_out_datasets_or_cleans_up_beside_a_training_run(cluster: Cluster, tmp_path: Path) -> None:
    trainer = OwnTrainer(print, run_config=RunConfig(name="run", storage_path=str(tmp_path)))
    names = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert "BackendSetupCallback" in names
    assert not names & {"DatasetsCallback", "PlacementGroupCleanerCallback"}
