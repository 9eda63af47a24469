"""The tokens that sequences draw from a step's logits, penalties and log-probabilities included.

Called by the engine. Shapes: R rows (one a sequence), V vocabulary.
"""

import torch
from torch import Tensor

from gpt_core.generation.request import TokenLogprob
from gpt_core.generation.sampling import draw, penalise, token_logprobs
from gpt_core.generation.sequence import Sequence

Drawn = tuple[int | None, TokenLogprob | None]
"""A token with its log-probability where that was asked for; no token where logits are not finite."""


def drawn_tokens(logits_RV: Tensor, sequences: list[Sequence]) -> dict[Sequence, Drawn]:
    """Return what each sequence draws from its row."""
    is_finite = torch.isfinite(logits_RV.amax(-1)).tolist()
    sound = [sequence for sequence, finite in zip(sequences, is_finite, strict=True) if finite]
    # What is not finite has no log-probabilities, and a token that says nothing.
    drawn = iter(_drawn(logits_RV if len(sound) == len(sequences) else logits_RV[is_finite], sound))
    return {
        sequence: next(drawn) if finite else (None, None) for sequence, finite in zip(sequences, is_finite, strict=True)
    }


def _drawn(logits_RV: Tensor, sequences: list[Sequence]) -> list[tuple[int, TokenLogprob | None]]:
    """Return each row's new token, with its log-probability where that was asked for."""
    plans = [sequence.plan for sequence in sequences]
    positions = [sequence.position + 1 for sequence in sequences]
    tokens = draw(_penalised(logits_RV, sequences), plans, positions).tolist()
    return list(zip(tokens, _sample_logprobs(logits_RV, sequences, tokens), strict=True))


def _penalised(logits_RV: Tensor, sequences: list[Sequence]) -> Tensor:
    if all(sequence.plan.repetition_penalty is None for sequence in sequences):
        return logits_RV
    changed_RV = logits_RV.clone()
    for logits_V, sequence in zip(changed_RV, sequences, strict=True):
        if sequence.plan.repetition_penalty is not None:
            seen = torch.tensor(sequence.seen_ids(), device=logits_RV.device)
            penalise(logits_V, seen, sequence.plan.repetition_penalty)
    return changed_RV


def _sample_logprobs(logits_RV: Tensor, sequences: list[Sequence], tokens: list[int]) -> list[TokenLogprob | None]:
    entries: list[TokenLogprob | None] = [None] * len(sequences)
    wanted = {row: s.request.sampling.logprobs for row, s in enumerate(sequences)}
    counts = {row: count for row, count in wanted.items() if count is not None}
    rows = list(counts)
    if rows:
        found = token_logprobs(logits_RV[rows], [tokens[row] for row in rows], list(counts.values()))
        for row, entry in zip(rows, found, strict=True):
            entries[row] = entry
    return entries
