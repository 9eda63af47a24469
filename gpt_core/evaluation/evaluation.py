"""Loss of a checkpoint on a corpus, and its scores in tasks, in planned pieces that any process can compute.

A piece of a corpus is a range of the split's windows, in the order of the stream. A window predicts
``window_tokens`` tokens from those before them in the same window (stride = window), so each
token but the remainder of a source counts once; of packed examples only the targets. Sums are taken in float64 in the
order of pieces: the result does not depend on who computed which.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gpt_core.corpus.order import Cells
from gpt_core.evaluation.sequence_scorer import SequenceScorer
from gpt_core.evaluation.task_plan import ItemRange, TextRange
from gpt_core.evaluation.task_scorer import Tasks, TaskScorer, exponential
from gpt_core.finetuning.masked_windows import unmasked
from gpt_core.finetuning.supervised_corpus import open_corpus
from gpt_core.model.gpt import GPT
from gpt_core.model.loss import token_losses
from gpt_core.tokens.tokenizer import Tokenizer, load_tokenizer
from gpt_core.training.checkpoint import load


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
        return exponential(self.loss)

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


@dataclass(frozen=True, slots=True)
class CorpusPart:
    """A split of a corpus, and the tokens predicted in a window."""

    folder: str
    split: str
    window_tokens: int


class WindowScorer:
    """Sums the loss over ranges of windows.

    Args:
        part: What to read.
        model: What predicts.
        batch_sequences: Windows of one forward pass.
        num_bytes_V: UTF-8 bytes of each token id.
    """

    def __init__(self, part: CorpusPart, model: GPT, batch_sequences: int, num_bytes_V: np.ndarray) -> None:
        self._corpus = open_corpus(part.folder, part.split)
        self._windows = self._corpus.every_window(part.window_tokens)
        self._model, self._window_tokens = model, part.window_tokens
        self._batch_sequences, self._num_bytes_V = batch_sequences, num_bytes_V

    def __call__(self, plan: WindowRange) -> dict[str, Any]:
        """Return {"loss_sum", "num_tokens", "num_bytes"} of the range."""
        loss_sum, num_tokens, num_bytes = 0.0, 0, 0
        for first in range(plan.first, plan.last, self._batch_sequences):
            chosen = slice(first, min(first + self._batch_sequences, plan.last))
            cells = Cells(self._windows.sources[chosen], self._windows.epochs[chosen], self._windows.windows[chosen])
            windows = self._corpus.windows(cells, self._window_tokens)
            ids, is_target_BT = unmasked(windows), windows[:, 1:] >= 0
            loss_sum += self._loss_sum(ids, is_target_BT)
            num_tokens += int(is_target_BT.sum())
            num_bytes += int(self._num_bytes_V[ids[:, 1:][is_target_BT]].sum())
        return {"loss_sum": loss_sum, "num_tokens": num_tokens, "num_bytes": num_bytes}

    @torch.inference_mode()
    def _loss_sum(self, ids: np.ndarray, is_target_BT: np.ndarray) -> float:
        tokens_BT = torch.from_numpy(ids)
        hidden_BTC = self._model.hidden(tokens_BT[:, :-1])
        losses_BT = token_losses(hidden_BTC, self._model.wte.weight, tokens_BT[:, 1:])
        return (losses_BT.double() * torch.from_numpy(is_target_BT)).sum().item()


class EvaluationWorker:
    """Scores whatever an evaluation plans, with one copy of the model; one a worker process.

    Args:
        checkpoint: Checkpoint folder.
        corpus: The corpus to measure on, or None.
        tasks: The tasks to score, or None.
        batch_sequences: Sequences of one forward pass.
    """

    def __init__(self, checkpoint: str, corpus: CorpusPart | None, tasks: Tasks | None, batch_sequences: int) -> None:
        torch.set_num_threads(1)  # the pool gives each worker one CPU
        loaded = load(checkpoint)
        model = GPT(loaded.shape, device="meta").eval()
        model.load_state_dict(loaded.weights, assign=True)
        tokenizer = load_tokenizer(loaded.tokenizer["name"])
        num_bytes_V = token_bytes(tokenizer)
        self._windows = corpus and WindowScorer(corpus, model, batch_sequences, num_bytes_V)
        self._tasks = tasks and TaskScorer(tasks, SequenceScorer(model, batch_sequences), tokenizer, num_bytes_V)

    def __call__(self, plan: tuple[int, WindowRange | ItemRange | TextRange]) -> dict[str, Any]:
        """Return the row of a numbered plan, as ``WindowScorer`` and ``TaskScorer`` make it."""
        index, cut = plan
        if isinstance(cut, WindowRange):
            assert self._windows is not None
            return self._windows(cut)
        assert self._tasks is not None
        return self._tasks(index, cut)


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
