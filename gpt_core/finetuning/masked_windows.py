"""Windows in which some tokens are read and not learnt: such a token stands as ``~id``, below zero.

A masked window travels through the same int64 arrays as any other, from the corpus to the learner. Made by
``finetuning.supervised_corpus``, undone by the learner. The last token of each is masked, since it belongs to the next
pack: whether a batch is masked shows in any of its windows.
"""

import numpy as np
from numpy.typing import NDArray

Windows = NDArray[np.int64]


def masked(tokens: Windows, is_target: NDArray[np.bool_]) -> Windows:
    """Return the tokens with those that are no targets masked."""
    return np.where(is_target, tokens, ~tokens)


def is_masked(windows: Windows) -> bool:
    """Return whether there is a masked token."""
    return bool(windows.size and windows.min() < 0)


def unmasked(windows: Windows) -> Windows:
    """Return the token ids."""
    return np.where(windows < 0, ~windows, windows) if is_masked(windows) else windows


def num_targets(windows: Windows) -> int:
    """Return how many tokens of windows [..., T + 1] are learnt; the first of each has nothing before it."""
    return int(np.count_nonzero(windows[..., 1:] >= 0))


def target_rows(windows: Windows) -> NDArray[np.int64] | None:
    """Return which of the B * T targets of windows [B, T + 1] are learnt, flat and rising; None for all of them."""
    return np.flatnonzero(windows[:, 1:] >= 0) if is_masked(windows) else None
