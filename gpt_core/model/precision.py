"""What a device can compute well, and its peak rate where that is published."""

import torch

from gpt_core.errors import ResourceError

# Dense bf16 peaks in FLOP/s by the device names CUDA reports, from the vendor's data sheets.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2.25e15,
}


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in for "auto", "fp32" or "bf16".

    "auto" takes bf16 where its products are faster than those of fp32.

    Raises:
        ResourceError: bf16 asked for on a device without instructions for it.
    """
    if precision == "fp32":
        return torch.float32
    if precision == "auto":
        return torch.bfloat16 if can_compute_bf16(device) else torch.float32
    if not can_compute_bf16(device):
        raise ResourceError(
            "train.precision",
            f"bf16 on a {device.type} without bf16 instructions",
            "fp32 or auto",
            "use fp32",
        )
    return torch.bfloat16


def can_compute_bf16(device: torch.device) -> bool:
    """Say whether the device has instructions for products in bf16: CUDA from capability 8.0, AMX, AVX512-BF16.

    Measured on CPUs against fp32: with AMX 900 and 110 GFLOP/s a core (Xeon), with AVX512-BF16 490 and 113 (EPYC).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (has_matrix_units() or _cpu_has("_is_avx512_bf16_supported"))


def has_matrix_units() -> bool:
    """Say whether this CPU has AMX, whose products no vector instructions reach."""
    return _cpu_has("_is_amx_tile_supported")


def peak_flops(device: torch.device) -> float | None:
    """Return the dense bf16 peak in FLOP/s; None where it is not known: no MFU rather than a wrong one."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def _cpu_has(question: str) -> bool:
    # torch offers these under private names only; a release without them counts as "no".
    ask = getattr(torch.cpu, question, None)
    return bool(ask and ask())
