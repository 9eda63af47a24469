"""How fast this process multiplies matrices, measured in a moment: what a training step can be at most."""

import time

import torch

TRIES = 5
MOST_ROWS = 512


def product_rate(width: int, num_rows: int, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the MLP's product and both its gradients on this process's CPU threads; the best of five.

    Takes well under a second.

    Args:
        width: Of the model.
        num_rows: Tokens of a micro-batch; 512 of them say enough.
        dtype: What is computed in.
    """
    rows = min(num_rows, MOST_ROWS)
    generator = torch.Generator().manual_seed(0)  # zeros would be faster
    x, weight, grad = (
        torch.randn(*size, generator=generator).to(dtype)
        for size in ((rows, width), (4 * width, width), (rows, 4 * width))
    )
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        _ = x @ weight.t(), grad @ weight, grad.t() @ x
        seconds.append(time.perf_counter() - start)
    return 3 * 2 * rows * width * 4 * width / min(seconds)
