"""Loss of a checkpoint on a corpus, in planned pieces that any process can compute.

A piece is a range of the split's windows, in the order of the stream. A window predicts
``window_tokens`` tokens from those before them in the same window (stride = window), so each
token but the remainder of a source counts once. Sums are taken in float64 in the order of
pieces: the result does not depend on who computed which.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gpt_core.checkpoint import load
from gpt_core.corpus import Corpus
from gpt_core.loss import token_losses
from gpt_core.model import GPT
from gpt_core.order import Cells
from gpt_core.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class WindowRange:
    """Windows first..last - 1 of the split."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What an evaluation found.

    Attributes:
        num_tokens: Tokens predicted.
        num_bytes: UTF-8 bytes of those tokens; an end-of-text token has none.
        loss: Mean loss in nats a token.
    """

    num_tokens: int
    num_bytes: int
    loss: float

    @property
    def perplexity(self) -> float:
        """E to the loss."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Loss in bits over the bytes of the text: comparable between vocabularies."""
        return self.loss * self.num_tokens / math.log(2) / self.num_bytes


def plan_windows(num_windows: int, windows_per_shard: int) -> Sequence[WindowRange]:
    """Cut the windows into ranges of windows_per_shard, the last one shorter."""
    return [
        WindowRange(first, min(first + windows_per_shard, num_windows))
        for first in range(0, num_windows, windows_per_shard)
    ]


class WindowScorer:
    """Sums the loss over ranges of windows; one a worker process.

    Args:
        checkpoint: Checkpoint folder.
        corpus: Corpus folder.
        split: Split of the corpus.
        window_tokens: Tokens predicted a window.
        batch_sequences: Windows of one forward pass.
    """

    def __init__(self, checkpoint: str, corpus: str, split: str, window_tokens: int, batch_sequences: int) -> None:
        torch.set_num_threads(1)  # the pool gives each worker one CPU
        self._corpus = Corpus(corpus, split)
        loaded = load(checkpoint)
        self._model = GPT(loaded.shape, device="meta").eval()
        self._model.load_state_dict(loaded.weights, assign=True)
        self._token_bytes = token_bytes(load_tokenizer(self._corpus.manifest.tokenizer.name))
        self._windows = self._corpus.every_window(window_tokens)
        self._window_tokens = window_tokens
        self._batch_sequences = batch_sequences

    def __call__(self, plan: WindowRange) -> dict[str, Any]:
        """Return {"loss_sum", "num_tokens", "num_bytes"} of the range."""
        loss_sum, num_bytes = 0.0, 0
        for first in range(plan.first, plan.last, self._batch_sequences):
            chosen = slice(first, min(first + self._batch_sequences, plan.last))
            cells = Cells(self._windows.sources[chosen], self._windows.epochs[chosen], self._windows.windows[chosen])
            ids = self._corpus.windows(cells, self._window_tokens)
            loss_sum += self._loss_sum(ids)
            num_bytes += int(self._token_bytes[ids[:, 1:]].sum())
        return {
            "loss_sum": loss_sum,
            "num_tokens": (plan.last - plan.first) * self._window_tokens,
            "num_bytes": num_bytes,
        }

    @torch.inference_mode()
    def _loss_sum(self, ids: np.ndarray) -> float:
        tokens_BT = torch.from_numpy(ids)
        hidden_BTC = self._model.hidden(tokens_BT[:, :-1])
        return token_losses(hidden_BTC, self._model.wte.weight, tokens_BT[:, 1:]).double().sum().item()


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Return the UTF-8 bytes of each token id, int64 [vocabulary]; 0 for end-of-text."""
    lengths = [len(tokenizer.decode_bytes([token])) for token in range(tokenizer.vocabulary_size)]
    lengths[tokenizer.end_of_text] = 0
    return np.array(lengths, dtype=np.int64)


def summed(rows: Iterable[dict[str, Any]]) -> Measured:
    """Return the result of all ranges, whatever the order their rows come in."""
    ordered = sorted(rows, key=lambda row: row["index"])
    num_tokens = sum(row["num_tokens"] for row in ordered)
    loss = sum(row["loss_sum"] for row in ordered) / num_tokens
    return Measured(num_tokens, sum(row["num_bytes"] for row in ordered), loss)
