"""Load of this machine, sampled while a job runs, under the names MLflow's page knows."""

import contextlib
import threading
from collections.abc import Callable

import psutil

from cluster.recording.gpu_load import GpuLoad
from gpt_core.errors import ResourceError

SAMPLE_SECONDS = 5.0
_MEBIBYTE = 1 << 20


class MachineLoad:
    """What this machine is doing; traffic is counted from the making of the object.

    Args:
        node: Name of the machine inside the metrics' names, as MLflow does it for runs on several machines.
    """

    def __init__(self, node: str | None = None) -> None:
        self._prefix = f"system/{node}/" if node else "system/"
        self._disk = psutil.disk_io_counters()
        self._network = psutil.net_io_counters()
        self._gpus = GpuLoad()
        psutil.cpu_percent()  # the first call only starts the measurement

    def sample(self) -> dict[str, float]:
        """Return CPU, memory, disk, network and GPU use of the machine; traffic in MB."""
        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEBIBYTE,
            "system_memory_usage_percentage": memory.percent,
            "process_memory_usage_megabytes": psutil.Process().memory_info().rss / _MEBIBYTE,
        }
        values |= self._traffic() | self._gpus.sample()
        return {f"{self._prefix}{name}": value for name, value in values.items()}

    def _traffic(self) -> dict[str, float]:
        disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
        values = {
            "network_receive_megabytes": (network.bytes_recv - self._network.bytes_recv) / 1e6,
            "network_transmit_megabytes": (network.bytes_sent - self._network.bytes_sent) / 1e6,
        }
        if disk is not None and self._disk is not None:  # a container may show no disks
            values["disk_read_megabytes"] = (disk.read_bytes - self._disk.read_bytes) / 1e6
            values["disk_write_megabytes"] = (disk.write_bytes - self._disk.write_bytes) / 1e6
        return values


class SystemSampler:
    """A thread that hands a sample to `receive` soon after its start, then every `seconds`.

    Args:
        receive: Called from the thread; a sample that finds the disk full is left out.
        seconds: Time between two samples.
    """

    def __init__(self, receive: Callable[[dict[str, float]], None], seconds: float) -> None:
        self._receive, self._seconds = receive, seconds
        self._stopped = threading.Event()
        self._load = MachineLoad()
        self._thread = threading.Thread(target=self._run, name="herd-system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join(timeout=2.0)

    def sample(self) -> dict[str, float]:
        """Return a sample taken now."""
        return self._load.sample()

    def _run(self) -> None:
        # The first sample waits a moment: CPU use is measured over the time since the load was made.
        self._stopped.wait(0.2)
        while not self._stopped.is_set():
            with contextlib.suppress(ResourceError):
                self._receive(self.sample())
            self._stopped.wait(self._seconds)
