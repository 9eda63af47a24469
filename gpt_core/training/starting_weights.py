"""The weights a fine-tuning run begins with: a checkpoint's, with a row for each token its vocabulary gained."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gpt_core.errors import CheckpointError
from gpt_core.training import checkpoint

EMBEDDING = "wte.weight"


def load_starting_weights(path: Path | str, digest: str | None, vocabulary_size: int) -> dict[str, Tensor]:
    """Return a checkpoint's fp32 weights, grown to a vocabulary.

    Raises:
        CheckpointError: It is damaged, or its weights no longer have this digest.
    """
    found = checkpoint.load(path)
    if digest is not None and (there := checkpoint.weights_digest(found.path)) != digest:
        raise CheckpointError(str(path), f"weights {there}", f"the {digest} this run began with", "restore them")
    return grown(found.weights, vocabulary_size)


def grown(weights: Mapping[str, Tensor], vocabulary_size: int) -> dict[str, Tensor]:
    """Return weights with as many rows of the token embedding, which is the head as well, as the vocabulary.

    A new row is the mean of the old ones, taken in float64: the model then gives a new token about the probability
    of an average one, and whatever it reads in its place is no outlier.
    """
    old_VC = weights[EMBEDDING]
    mean_1C = old_VC.double().mean(dim=0, keepdim=True).float()
    rows = torch.cat([old_VC, mean_1C.expand(vocabulary_size - len(old_VC), -1)])
    return {name: rows if name == EMBEDDING else weight for name, weight in weights.items()}
