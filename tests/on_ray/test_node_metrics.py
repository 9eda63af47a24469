"""The load of a cluster's nodes arrives in the run: of those that work, as long as they do."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cluster.recording.journal import read_all

ROOT = Path(__file__).parents[2]
# In a process of its own: the other tests of this folder share one Ray.
JOB = """
import sys, time
from pathlib import Path
from cluster import session
session._prepare_environment(embedded=True)
import ray
from ray.cluster_utils import Cluster
from cluster.recording.node_metrics import NodeSamplers, sampled_nodes
from cluster.tracking import TrackingOptions, open_run

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
ray.init(address=nodes.address, log_to_driver=False)
nodes.add_node(num_cpus=1, resources={"second": 1})
nodes.wait_for_nodes()

@ray.remote(num_cpus=1, resources={"second": 1})
def work(end):
    while not Path(end).exists():
        time.sleep(0.05)

folder = Path(sys.argv[1])
journal = folder / "tracking" / "journal.jsonl"
seen = lambda: journal.read_text().count("/cpu_utilization_percentage")

def wait_until(is_so):
    while not is_so():
        time.sleep(0.05)

with open_run(TrackingOptions(enabled=False, system_seconds=None), name="a", kind="pretrain", output=folder) as run:
    samplers = NodeSamplers(run.log_load, 0.2)
    time.sleep(1)
    assert not samplers._samplers, "an idle node has a sampler"
    working = work.remote(str(folder / "end"))
    wait_until(lambda: seen() >= 3)
    (folder / "end").touch()
    ray.get(working)
    wait_until(lambda: not samplers._samplers)
    samplers.stop()
ray.shutdown()
nodes.shutdown()
"""


@pytest.mark.timeout(200)
def test_a_node_that_works_is_sampled_under_its_name_until_it_is_idle(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(JOB), str(tmp_path)],
        cwd=ROOT, env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}, capture_output=True, text=True, timeout=180,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = [record for record in read_all(tmp_path / "tracking" / "journal.jsonl") if record["do"] == "metrics"]
    nodes = {name.split("/")[1] for record in records for name in record["metrics"]}
    assert len(nodes) == 1  # the second one: the driver's own machine is sampled by the driver
    assert len(records) >= 3
    assert all({name.split("/")[0] for name in record["metrics"]} == {"system"} for record in records)
    assert [record["step"] for record in records] == sorted(record["step"] for record in records)
