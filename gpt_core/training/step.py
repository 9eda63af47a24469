"""What a training step is told and what it tells, whatever way the state is kept.

Shared by ``learner`` and ``fully_sharded``, so that a step's numbers, its dropout and its refusal
of numbers that are none are the same in both.
"""

import hashlib
import math
import os
from dataclasses import dataclass

import numpy as np
import torch

from gpt_core.errors import RunFailedError
from gpt_core.finetuning.masked_windows import unmasked
from gpt_core.training.training_plan import Reduction, Sharding


@dataclass(frozen=True, slots=True)
class Compute:
    """How to compute: everything here but the device's kind and the dtype leaves exact results alone."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    dtype: torch.dtype = torch.float32
    reduction: Reduction = "exact"
    compiled: bool = False
    sharding: Sharding = "none"
    activation_checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class Votes:
    """What a rank wishes for after the step; the ranks' votes are counted with their gradients."""

    stop: bool = False
    save: bool = False


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step saw: mean loss in nats, gradient norm before clipping, ranks that asked to stop or to save."""

    loss: float
    grad_norm: float
    stop_votes: int
    save_votes: int = 0


NO_VOTES = Votes()


def checked_report(step: int, numbers: torch.Tensor) -> StepReport:
    """Return the report of (loss, gradient norm, votes to stop, votes to save), brought to the host at once.

    Raises:
        RunFailedError: A loss or norm that is not finite.
    """
    loss, grad_norm, stop_votes, save_votes = numbers.tolist()
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise RunFailedError(
            f"step {step}",
            f"loss {loss} and gradient norm {grad_norm}",
            "finite numbers",
            "lower the learning rate or look at this step's windows; the weights were not changed",
        )
    return StepReport(loss, grad_norm, round(stop_votes), round(save_votes))


def ids_on(device: torch.device, windows: np.ndarray) -> torch.Tensor:
    """Return the token ids of windows on the device; to a GPU they travel while it computes."""
    ids = torch.from_numpy(unmasked(windows))
    return ids.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else ids


def dropout_key(seed: int, step: int, micro_batch: int) -> int:
    """Return the seed of one micro-batch's dropout; ``micro_batch`` counts over all ranks."""
    digest = hashlib.sha256(f"dropout/{seed}/{step}/{micro_batch}".encode()).digest()
    return int.from_bytes(digest[:8], "little") & (2**63 - 1)


def make_cuda_deterministic() -> None:
    """Choose CUDA kernels that give the same bits each time, for the rest of the process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True)
    # Nothing here reads memory before it is written; filling it would be a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
