"""Where the time of some work on a device goes, for the GPU benchmarks: its costliest kernels."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

_ROWS = 30


def print_profile(work: Callable[[], object], device: torch.device) -> None:
    """Do the work once and print its costliest kernels, or a CPU's operators, and what all take together."""
    is_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if is_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities, acc_events=True) as found:
        work()
        if is_gpu:
            torch.cuda.synchronize(device)
    order = "self_device_time_total" if is_gpu else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=90))
