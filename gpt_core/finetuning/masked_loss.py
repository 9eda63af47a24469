"""The loss of windows that are masked: over their targets alone, which are all that is put through the head."""

import numpy as np
import torch
from torch import Tensor

from gpt_core.model.loss import next_token_loss


def masked_next_token_loss(hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor, rows_N: Tensor) -> Tensor:
    """Return the losses in nats of some of the B * T targets, added up and divided by B * T.

    Not by their number: so the results of micro-batches add up to a sum over all targets, and whoever knows how
    many there are in a step divides by it. An fp32 scalar, differentiable in both tensors.

    Args:
        hidden_BTC: Final hidden states.
        weight_VC: The head.
        targets_BT: Ids, those that do not count included.
        rows_N: Places of the N targets that count, flat, one or more.
    """
    hidden_NC = hidden_BTC.flatten(0, -2).index_select(0, rows_N)
    targets_N = torch.take(targets_BT, rows_N)
    return next_token_loss(hidden_NC, weight_VC, targets_N) * (rows_N.numel() / targets_BT.numel())


def summed_over_targets(losses_BT: Tensor, windows: np.ndarray) -> np.ndarray:
    """Return each window's summed loss over the tokens that are learnt, float64 [B], for windows [B, T + 1]."""
    is_target_BT = torch.from_numpy(windows[:, 1:] >= 0).to(losses_BT.device)
    return (losses_BT.double() * is_target_BT).sum(dim=1).cpu().numpy()
