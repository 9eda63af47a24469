"""The process group of training workers, listening where its workers are and nowhere else.

By itself torch's store, where ranks meet, listens on every interface, and gloo on that of the machine's name.
"""

import importlib
import ipaddress
import os
import socket
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from gpt_core.training.local_ranks import loopback_interface


class NodeTorchConfig(TorchConfig):
    """Ray Train's own, with servers on the nodes' addresses, which an embedded Ray has on loopback."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend that starts the group."""
        return _NodeTorchBackend


class _NodeTorchBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_listen_on_own_node)
        super().on_start(worker_group, backend_config)


def _listen_on_own_node() -> None:
    """Make this worker's part of the next process group listen on its node's address alone."""
    import ray

    torch_group: Any = importlib.import_module("torch.distributed")
    # By the module's name: torch.distributed has a function of the same.
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
    if ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback_interface())

    def create_store(hostname: str, port: int, rank: int, world_size: int, timeout: Any, use_libuv: Any) -> Any:
        options = {"host_name": hostname, "port": port, "world_size": world_size, "timeout": timeout}
        if rank == 0:
            family = socket.AF_INET6 if ":" in hostname else socket.AF_INET
            listening = socket.create_server((hostname, port), family=family)
            options |= {"is_master": True, "master_listen_fd": listening.detach()}
        return torch_group.TCPStore(**options, use_libuv=use_libuv)

    rendezvous._create_c10d_store = create_store
