"""Load of this machine's NVIDIA GPUs, under the names MLflow's page knows; nothing where there are none."""

import importlib
from pathlib import Path
from typing import Any

_MEBIBYTE = 1 << 20
_DRIVER = Path("/dev/nvidiactl")
# NVIDIA's own bindings, and the copy that Ray carries.
_BINDINGS = ("pynvml", "ray._private.thirdparty.pynvml")


class GpuLoad:
    """Asks NVIDIA's management library, which needs no CUDA context and sees all GPUs of the machine."""

    def __init__(self) -> None:
        self._nvml: Any = _bindings()
        self._handles: list[Any] = []
        if self._nvml is None:
            return
        try:
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except self._nvml.NVMLError:  # a container may show the device and not let us ask
            self._handles = []

    def sample(self) -> dict[str, float]:
        """Return utilization, memory and power of each GPU, without what it does not tell."""
        values: dict[str, float] = {}
        for index, handle in enumerate(self._handles):
            for part in (self._utilization, self._memory, self._power):
                try:
                    found = part(handle)
                except self._nvml.NVMLError:
                    continue
                values |= {f"gpu_{index}_{name}": value for name, value in found.items()}
        return values

    def _utilization(self, handle: Any) -> dict[str, float]:
        return {"utilization_percentage": float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)}

    def _memory(self, handle: Any) -> dict[str, float]:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        return {
            "memory_usage_megabytes": memory.used / _MEBIBYTE,
            "memory_usage_percentage": 100 * memory.used / memory.total,
        }

    def _power(self, handle: Any) -> dict[str, float]:
        return {"power_usage_watts": self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000}


def _bindings() -> Any:
    if not _DRIVER.exists():
        return None
    for name in _BINDINGS:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
