"""Nothing of a job without a cluster can be reached from another machine."""

import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from cluster import training
from cluster.serving import service
from cluster.serving.http_guard import Access
from cluster.session import Cluster
from cluster.tracking import TrackingOptions, open_run
from gpt_core.settings import EngineSettings, ModelSettings, PretrainSettings, ServeSettings, TrainSettings
from tests.tiny_checkpoint import write_tiny_checkpoint
from tests.tiny_corpus import write_tiny_corpus


def open_sockets() -> set[str]:
    """Return what listens on more than loopback, of this process and all below it."""
    found = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN and not is_loopback(connection.laddr.ip):
                    found.add(f"{connection.laddr.ip} of {process.cmdline()[0]}")
    return found


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


@contextmanager
def watched() -> Iterator[set[str]]:
    """Look at the sockets all the time while the body runs."""
    found: set[str] = set()
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.1):
            found.update(open_sockets())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        stopped.set()
        watcher.join()


def test_training_on_two_workers_listens_on_loopback_alone(cluster: Cluster, tmp_path: Path) -> None:
    settings = PretrainSettings(
        corpus=str(write_tiny_corpus(tmp_path / "corpus")),
        output=str(tmp_path / "model"),
        model=ModelSettings(n_layer=1, n_head=1, n_embd=16, num_positions=16),
        train=TrainSettings(num_steps=4, batch_sequences=4, micro_batch_sequences=2, num_workers=2),
    )
    inputs = training.resolve(settings)
    options = TrackingOptions(enabled=False, system_seconds=None)
    with open_run(options, name="test", kind="pretrain", output=Path(settings.output)) as run, watched() as found:
        assert training.perform(settings, inputs, cluster, run).num_steps == 4
    assert found == set()


def test_a_service_listens_on_loopback_alone(cluster: Cluster, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    engine = EngineSettings(num_slots=2, precision="fp32", device="cpu")
    settings = ServeSettings(checkpoint=str(write_tiny_checkpoint(tmp_path)), port=port, engine=engine)
    with service.running(settings, service.resolve(settings), Access(None, None), cluster):
        assert open_sockets() == set()
