"""Log-probabilities a model gives to the ends of token sequences.

Called by the evaluation of tasks. Sequences of one call share batches, in an order that follows from their lengths:
what a sequence scores depends on the call's sequences alone, never on who makes the call.

Shapes: B sequences, T positions, C width, N targets of a batch, n of them at a time, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_core.model.gpt import GPT
from gpt_core.model.loss import rows_a_chunk


@dataclass(frozen=True, slots=True)
class Ending:
    """A sequence of ids whose last ``num_targets`` are to be predicted, each from all before it; 1 or more stay."""

    ids: Sequence[int]
    num_targets: int


@dataclass(frozen=True, slots=True)
class Score:
    """What an ending scored: the sum of its natural log-probabilities, and whether each target was the likeliest."""

    log_likelihood: float
    is_greedy: bool


class SequenceScorer:
    """Scores endings, ``batch_sequences`` of similar length in a forward pass."""

    def __init__(self, model: GPT, batch_sequences: int) -> None:
        self._model = model
        self._batch_sequences = batch_sequences

    def __call__(self, endings: Sequence[Ending]) -> list[Score]:
        """Return the scores, in the order of the endings; contexts too long for the model are cut at their start."""
        most = self._model.shape.num_positions + 1
        cut = [Ending(ending.ids[-most:], ending.num_targets) for ending in endings]
        order = sorted(range(len(cut)), key=lambda index: len(cut[index].ids))
        scores: dict[int, Score] = {}
        for first in range(0, len(order), self._batch_sequences):
            chosen = order[first : first + self._batch_sequences]
            scores.update(zip(chosen, self._batch([cut[index] for index in chosen]), strict=True))
        return [scores[index] for index in range(len(cut))]

    @torch.inference_mode()
    def _batch(self, endings: list[Ending]) -> list[Score]:
        num_positions = max(len(ending.ids) for ending in endings) - 1
        ids_BT = torch.zeros(len(endings), num_positions, dtype=torch.int64)
        for row, ending in enumerate(endings):
            ids_BT[row, : len(ending.ids) - 1] = torch.tensor(ending.ids[:-1])
        hidden_BTC = self._model.hidden(ids_BT)
        ends = [len(ending.ids) - 1 for ending in endings]
        parts = [
            hidden_BTC[row, end - ending.num_targets : end]
            for row, (ending, end) in enumerate(zip(endings, ends, strict=True))
        ]
        targets_N = torch.tensor([token for ending in endings for token in ending.ids[-ending.num_targets :]])
        log_probs_N, greedy_N = _predicted(torch.cat(parts), self._model.wte.weight, targets_N)
        lengths = [ending.num_targets for ending in endings]
        pairs = zip(log_probs_N.double().split(lengths), greedy_N.split(lengths), strict=True)
        return [Score(log_probs.sum().item(), bool(greedy.all())) for log_probs, greedy in pairs]


def _predicted(hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return each target's log-probability, fp32 [N], and whether it is the likeliest, bool [N]."""
    rows = rows_a_chunk(weight_VC)
    found = []
    for hidden_nC, targets_n in zip(hidden_NC.split(rows), targets_N.split(rows), strict=True):
        logits_nV = F.linear(hidden_nC, weight_VC).float()
        log_probs_n = logits_nV.gather(1, targets_n[:, None])[:, 0] - logits_nV.logsumexp(1)
        found.append((log_probs_n, logits_nV.argmax(1) == targets_n))
    return torch.cat([log_probs for log_probs, _ in found]), torch.cat([greedy for _, greedy in found])
