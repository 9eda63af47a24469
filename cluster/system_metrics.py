"""Load of this machine, sampled while a job runs, under the names MLflow's page knows."""

import threading
from collections.abc import Callable

import psutil

_MEBIBYTE = 1 << 20


class SystemSampler:
    """A thread that hands a sample to `receive` soon after its start, then every `seconds`.

    Args:
        receive: Called from the thread.
        seconds: Time between two samples.
        node: Name of the machine inside the metrics' names, as MLflow does it for runs on several machines.
    """

    def __init__(self, receive: Callable[[dict[str, float]], None], seconds: float, node: str | None = None) -> None:
        self._receive, self._seconds = receive, seconds
        self._prefix = f"system/{node}/" if node else "system/"
        self._stopped = threading.Event()
        self._disk = psutil.disk_io_counters()
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()  # the first call only starts the measurement
        self._thread = threading.Thread(target=self._run, name="herd-system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        # The first sample waits a moment: CPU use is measured over the time since the call above.
        self._stopped.wait(0.2)
        while not self._stopped.is_set():
            self._receive(self.sample())
            self._stopped.wait(self._seconds)

    def sample(self) -> dict[str, float]:
        """Return CPU, memory, disk and network use of the machine; traffic since the sampler began, in MB."""
        memory = psutil.virtual_memory()
        values = {
            f"{self._prefix}cpu_utilization_percentage": psutil.cpu_percent(),
            f"{self._prefix}system_memory_usage_megabytes": memory.used / _MEBIBYTE,
            f"{self._prefix}system_memory_usage_percentage": memory.percent,
            f"{self._prefix}process_memory_usage_megabytes": psutil.Process().memory_info().rss / _MEBIBYTE,
        }
        return values | self._traffic()

    def _traffic(self) -> dict[str, float]:
        disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
        values = {
            f"{self._prefix}network_receive_megabytes": (network.bytes_recv - self._network.bytes_recv) / 1e6,
            f"{self._prefix}network_transmit_megabytes": (network.bytes_sent - self._network.bytes_sent) / 1e6,
        }
        if disk is not None and self._disk is not None:  # a container may show no disks
            values[f"{self._prefix}disk_read_megabytes"] = (disk.read_bytes - self._disk.read_bytes) / 1e6
            values[f"{self._prefix}disk_write_megabytes"] = (disk.write_bytes - self._disk.write_bytes) / 1e6
        return values
