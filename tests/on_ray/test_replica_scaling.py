"""A service grows with the queue of its engines, and Prometheus finds what the dashboard shows of it."""

import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from cluster.serving.http_guard import Access
from cluster.serving.service import application_name, metrics_address, resolve, running
from cluster.session import Cluster
from gpt_core.settings import EngineSettings, ServeSettings
from tests.tiny_checkpoint import write_tiny_checkpoint

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"
PROMPT = "Zanzibar"
CONTEXT = 8192


@pytest.fixture
def service(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    engine = EngineSettings(num_slots=1, max_replicas=2, precision="fp32", device="cpu")
    folder = write_tiny_checkpoint(tmp_path, num_positions=CONTEXT)
    settings = ServeSettings(checkpoint=str(folder), port=port, engine=engine, drain_seconds=0.1)
    with running(settings, resolve(settings), Access(None, None), cluster) as address:
        yield address


def complete(address: str, **fields: object) -> HTTPResponse:
    # A temperature at which no end of text is drawn.
    body = json.dumps({"prompt": PROMPT, "temperature": 0.2, "seed": 1} | fields).encode()
    request = urllib.request.Request(f"{address}/v1/completions", body, {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=60)


def text(address: str) -> str:
    with complete(address, max_tokens=40) as answer:
        return json.load(answer)["choices"][0]["text"]


def num_replicas(address: str) -> int:
    application = application_name(int(address.rpartition(":")[2]))
    states: Any = serve.status().applications[application].deployments["Generator"].replica_states
    return states.get("RUNNING", 0)


def wait_until(reached: Callable[[], object], otherwise: str, seconds: float = 40) -> None:
    give_up = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < give_up, otherwise
        time.sleep(0.2)


def exported() -> str:
    with urllib.request.urlopen(metrics_address(), timeout=10) as answer:
        return answer.read().decode()


def replicas_that_drew() -> set[str]:
    drawn = re.compile(r'^ray_herd_engine_drawn_tokens_total{.*\breplica="(\w+)".*} [1-9]', re.MULTILINE)
    return {match[1] for match in drawn.finditer(exported())}


def shown_of_serving() -> set[str]:
    """Return the metrics of engines, HTTP and Ray Serve that the dashboard asks for."""
    return set(re.findall(r"\bray_(?:herd_engine|herd_http|serve)_\w+", DASHBOARD.read_text()))


def test_a_queue_brings_a_replica_that_says_the_same_and_all_of_it_is_exported(service: str) -> None:
    with pytest.raises(urllib.error.HTTPError):  # so that there is an error to be counted
        urllib.request.urlopen(f"{service}/nothing", timeout=10)
    of_others = replicas_that_drew()  # Ray still exports what those of earlier services counted
    alone, texts = text(service), set()
    assert num_replicas(service) == 1
    with complete(service, max_tokens=CONTEXT - len(PROMPT), n=3, stream=True):
        wait_until(lambda: num_replicas(service) == 2, "the queue brought no replica")

    def both_have_answered() -> bool:
        texts.add(text(service))
        return len(replicas_that_drew() - of_others) >= 2

    wait_until(both_have_answered, "one of the replicas drew nothing")
    assert texts == {alone}
    names = {line.partition("{")[0] for line in exported().splitlines()}
    assert len(shown_of_serving()) >= 9
    assert shown_of_serving() - names == set()
    assert re.search(r'^ray_herd_http_requests_total{.*\bstatus="404".*} 1', exported(), re.MULTILINE)
    assert PROMPT not in exported()
