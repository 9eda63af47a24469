"""Tokens drawn from logits, and their log-probabilities, one row a sequence.

Called by the engine after every decode step. Invariant: a row's token and log-probability depend
on that row's logits, settings and counter alone, bit for bit. Two things make it hold on any
device and for any grouping of rows:

- a uniform number is a hash of (key, position), so there is no generator whose state others move;
- probabilities are taken as whole numbers of 2^-36 of the most probable token's, held in float64
  where sums below 2^53 are exact in any order. A token below 2^-37 of the most probable one
  (7e-12) counts as zero; every other is off by at most 7e-12 of the most probable one's share.

Tokens are ranked by logit, equal ones by id. Shapes: R rows, V vocabulary (a multiple of
``VOCABULARY_STEP``, -inf past the real one), K candidates.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpt_core.generation.kv_cache import round_up
from gpt_core.generation.request import GenerationRequest, Sampling, TokenLogprob

VOCABULARY_STEP = 128
_BLOCK_IDS = 64  # ids that are looked at together first
WEIGHT_UNITS = 2.0**36
MAX_VOCABULARY = 2**17
"""2^17 weights of at most 2^36 add up to at most 2^53, the last exact whole number of a float64."""
RANK_WIDTHS = (64, 128, 2048)
"""Numbers of candidates tried before the whole vocabulary is ranked; the first is less where every top_k is."""
_WIDTH_STEP = 8
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # splitmix64's constants (Steele et al. 2014) as signed numbers
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """How the tokens of one sample are drawn. ``key`` is the counter's, from ``draw_key``."""

    kind: Literal["greedy", "ranked", "flat"]
    key: int
    temperature: float = 1.0
    top_k: int = MAX_VOCABULARY
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float | None = None


def plan_draws(request: GenerationRequest, sample: int) -> DrawPlan:
    """Return how sample number ``sample`` of a request is drawn."""
    sampling = request.sampling
    return DrawPlan(
        kind=_kind(sampling),
        key=draw_key(sampling.seed, request.id if request.key is None else request.key, sample),
        temperature=sampling.temperature,
        top_k=min(sampling.top_k or MAX_VOCABULARY, MAX_VOCABULARY),
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        min_p=sampling.min_p or 0.0,
        repetition_penalty=sampling.repetition_penalty,
    )


def _kind(sampling: Sampling) -> Literal["greedy", "ranked", "flat"]:
    if sampling.temperature == 0.0 or sampling.top_k == 1:
        return "greedy"
    is_whole = sampling.top_k is None and sampling.top_p in {None, 1.0}
    return "flat" if is_whole else "ranked"


def draw_key(seed: int, request_key: str, sample: int) -> int:
    """Return the signed 64-bit key of one sample: BLAKE2b of seed, request and sample number."""
    text = f"{seed}/{sample}/{request_key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def uniform(keys_R: Tensor, positions_R: Tensor) -> Tensor:
    """Return float64 numbers in [0, 1), 53 bits each: splitmix64 of (key, position), int64 tensors."""
    state = keys_R + (positions_R + 1) * _GOLDEN
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    return _shift_right(state ^ _shift_right(state, 31), 11).double() * 2.0**-53


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on the device; a GPU is not waited for, which a copy from ordinary memory would do."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _shift_right(state: Tensor, bits: int) -> Tensor:
    """Shift int64 as if it had no sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def penalise(logits_V: Tensor, seen_ids: Tensor, penalty: float) -> None:
    """Divide positive and multiply negative logits of ``seen_ids`` (each once) by ``penalty``, in place."""
    seen = logits_V[seen_ids]
    logits_V[seen_ids] = torch.where(seen > 0, seen / penalty, seen * penalty)


def draw(logits_RV: Tensor, plans: Sequence[DrawPlan], positions: Sequence[int]) -> Tensor:
    """Return the int64 tokens_R drawn at ``positions`` (of the new token in its sequence).

    Repetition penalties are not applied here: see ``penalise``.
    """
    tokens_R = torch.empty(len(plans), dtype=torch.int64, device=logits_RV.device)
    for kind, draw_rows in _DRAW_ROWS.items():
        rows = [row for row, plan in enumerate(plans) if plan.kind == kind]
        if rows:
            settings = _Settings.of([plans[r] for r in rows], [positions[r] for r in rows], logits_RV.device)
            if len(rows) == len(plans):
                return draw_rows(logits_RV, settings)
            tokens_R[rows] = draw_rows(logits_RV[rows], settings)
    return tokens_R


def draws_without_waiting(plans: Sequence[DrawPlan]) -> bool:
    """Say whether ``draw`` only gives a device work: all plans are of one kind, and every top_k is small."""
    kind = plans[0].kind
    return all(plan.kind == kind and (kind != "ranked" or plan.top_k <= RANK_WIDTHS[0]) for plan in plans)


@dataclass(frozen=True, slots=True)
class _Settings:
    """The plans of some rows as columns [R, 1]."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_weight: Tensor
    uniform: Tensor
    first_width: int
    """Candidates that are enough for every top_k."""

    @staticmethod
    def of(plans: Sequence[DrawPlan], positions: Sequence[int], device: torch.device) -> "_Settings":
        def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
            return to_device(torch.tensor(values, dtype=dtype), device)[:, None]

        keys = torch.tensor([plan.key for plan in plans], dtype=torch.int64)
        return _Settings(
            temperature=column([plan.temperature for plan in plans], torch.float32),
            top_k=column([plan.top_k for plan in plans], torch.int64),
            top_p=column([plan.top_p for plan in plans], torch.float64),
            min_weight=column([plan.min_p * WEIGHT_UNITS for plan in plans], torch.float64),
            uniform=to_device(uniform(keys, torch.tensor(positions, dtype=torch.int64)), device)[:, None],
            first_width=round_up(max(plan.top_k for plan in plans), _WIDTH_STEP),
        )

    def rows(self, chosen: Tensor) -> "_Settings":
        return _Settings(
            self.temperature[chosen],
            self.top_k[chosen],
            self.top_p[chosen],
            self.min_weight[chosen],
            self.uniform[chosen],
            self.first_width,
        )


def _draw_greedy(logits_RV: Tensor, settings: _Settings) -> Tensor:  # noqa: ARG001 - one signature for the three
    """Take the most probable token, the first of equal ones."""
    return logits_RV.argmax(-1)


def _draw_flat(logits_RV: Tensor, settings: _Settings) -> Tensor:
    """Draw among all tokens, in the order of their ids."""
    weights_RV = _weights(logits_RV, logits_RV.amax(-1, keepdim=True), settings.temperature)
    weights_RV.masked_fill_(weights_RV < settings.min_weight, 0.0)
    return _pick(weights_RV, settings.uniform)


def _draw_ranked(logits_RV: Tensor, settings: _Settings) -> Tensor:
    """Draw among the leading tokens, in the order of their ranks, over as many candidates as that takes."""
    if settings.first_width <= RANK_WIDTHS[0]:  # then enough for every row, which nobody has to look at
        totals_R1 = torch.full_like(settings.top_p, torch.inf)
        return _draw_among(logits_RV, settings, totals_R1, settings.first_width)[0]
    tokens_R = torch.empty(len(logits_RV), dtype=torch.int64, device=logits_RV.device)
    totals_R1 = _whole_totals(logits_RV, settings)
    left = torch.arange(len(logits_RV), device=logits_RV.device)
    for width in (min(settings.first_width, RANK_WIDTHS[0]), *RANK_WIDTHS[1:], logits_RV.shape[1]):
        logits = logits_RV if len(left) == len(logits_RV) else logits_RV[left]
        tokens, done = _draw_among(logits, settings.rows(left), totals_R1[left], width)
        tokens_R[left[done]] = tokens[done]
        left = left[~done]
        if not len(left):
            break
    return tokens_R


_DRAW_ROWS: dict[str, Callable[[Tensor, _Settings], Tensor]] = {
    "greedy": _draw_greedy,
    "ranked": _draw_ranked,
    "flat": _draw_flat,
}


def _draw_among(logits_RV: Tensor, settings: _Settings, totals_R1: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return tokens_R drawn among the ``width`` leading candidates, and whether those were enough."""
    num_candidates = min(width, logits_RV.shape[1])
    values_RK, ids_RK = top_candidates(logits_RV, num_candidates)
    weights_RK = _weights(values_RK, values_RK[:, :1], settings.temperature)
    weights_RK.masked_fill_(torch.arange(num_candidates, device=ids_RK.device) >= settings.top_k, 0.0)
    sums_RK = weights_RK.cumsum(-1)
    is_cut_R1 = settings.top_k <= num_candidates
    needed_R1 = settings.top_p * torch.where(is_cut_R1, sums_RK[:, -1:], totals_R1)
    enough_R1 = is_cut_R1 | (sums_RK[:, -1:] >= needed_R1)
    outside_RK = (sums_RK - weights_RK >= needed_R1) | (weights_RK < settings.min_weight)
    picked_R = _pick(weights_RK.masked_fill_(outside_RK, 0.0), settings.uniform)
    is_whole = num_candidates == logits_RV.shape[1]
    return ids_RK.gather(1, picked_R[:, None])[:, 0], enough_R1[:, 0] | is_whole


def _whole_totals(logits_RV: Tensor, settings: _Settings) -> Tensor:
    """Return the weight [R, 1] of the whole vocabulary, or infinity for rows that never need it."""
    totals_R1 = torch.full_like(settings.top_p, torch.inf)
    needing = (settings.top_k[:, 0] >= logits_RV.shape[1]).nonzero()[:, 0]
    if len(needing):
        logits = logits_RV[needing]
        weights = _weights(logits, logits.amax(-1, keepdim=True), settings.temperature[needing])
        totals_R1[needing] = weights.sum(-1, keepdim=True)
    return totals_R1


def _weights(logits_RK: Tensor, peak_R1: Tensor, temperature_R1: Tensor) -> Tensor:
    """Return whole numbers in float64, WEIGHT_UNITS for the most probable token."""
    scaled = (logits_RK - peak_R1) / temperature_R1
    return scaled.exp_().double().mul_(WEIGHT_UNITS).round_()


def _pick(weights_RK: Tensor, uniform_R1: Tensor) -> Tensor:
    """Return for each row the index at which the running sum of its weights passes uniform * total."""
    sums_RK = weights_RK.cumsum(-1)
    totals_R1 = sums_RK[:, -1:]
    targets_R1 = torch.minimum((uniform_R1 * totals_R1).floor(), totals_R1 - 1)
    # Sums that are not finite are passed by none; the row's token is never used, but must be one.
    return torch.searchsorted(sums_RK, targets_R1, right=True)[:, 0].clamp_(max=weights_RK.shape[1] - 1)


def top_candidates(logits_RV: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """Return the leading values_RK and ids_RK of each row, best first, equal values by id.

    Exact in two levels where K is small: each of the K blocks with the highest maxima (equal ones
    by index) holds a token that ranks before any token of the other blocks.
    """
    num_blocks = logits_RV.shape[1] // _BLOCK_IDS
    if num_candidates * 2 >= num_blocks:
        ids_RV = torch.arange(logits_RV.shape[1], device=logits_RV.device).expand_as(logits_RV)
        return _rank(logits_RV, ids_RV, num_candidates)
    blocks_RBW = logits_RV.unflatten(-1, (num_blocks, _BLOCK_IDS))
    maxima_RB = blocks_RBW.amax(-1)
    block_ids = torch.arange(num_blocks, device=logits_RV.device).expand_as(maxima_RB)
    _, best_RK = _rank(maxima_RB, block_ids, num_candidates)
    values = blocks_RBW.gather(1, best_RK[:, :, None].expand(-1, -1, _BLOCK_IDS)).flatten(1)
    within = torch.arange(_BLOCK_IDS, device=logits_RV.device)
    ids = (best_RK[:, :, None] * _BLOCK_IDS + within).flatten(1)
    return _rank(values, ids, num_candidates)


def _rank(values_RW: Tensor, ids_RW: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` best (value, id) of each row by one int64 key that no two entries share."""
    bits = (values_RW + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    keys = (ordered << 17) | (MAX_VOCABULARY - 1 - ids_RW)
    best = keys.topk(count, dim=-1).values if count < keys.shape[1] else keys.sort(-1, descending=True).values
    ids = MAX_VOCABULARY - 1 - (best & (MAX_VOCABULARY - 1))
    kept = (best >> 17).int()
    return (kept ^ ((kept >> 31) & 0x7FFFFFFF)).view(torch.float32), ids


def token_logprobs(logits_RV: Tensor, token_ids: Sequence[int], num_alternatives: Sequence[int]) -> list[TokenLogprob]:
    """Return, for one token a row, its log-probability and that row's number of alternatives.

    Log-softmax of the unmodified logits (no temperature, filter or penalty), rounded to fp32:
    x - max - log(sum) in float64, with the exact sum of the module's whole-numbered weights.
    """
    peak_R1 = logits_RV.amax(-1, keepdim=True)
    totals_R1 = _weights(logits_RV, peak_R1, torch.ones_like(peak_R1)).sum(-1, keepdim=True)
    offsets_R1 = peak_R1.double() + (totals_R1 / WEIGHT_UNITS).log()
    ids_R1 = torch.tensor(list(token_ids), device=logits_RV.device)[:, None]
    chosen_R1 = (logits_RV.gather(1, ids_R1).double() - offsets_R1).float()
    values_RK, best_RK = top_candidates(logits_RV, min(max(1, *num_alternatives), logits_RV.shape[1]))
    logprobs_RK = (values_RK.double() - offsets_R1).float().tolist()
    columns = zip(token_ids, chosen_R1[:, 0].tolist(), best_RK.tolist(), logprobs_RK, num_alternatives, strict=True)
    return [
        TokenLogprob(token, chosen, _possible(best[:count], values[:count]))
        for token, chosen, best, values, count in columns
    ]


def _possible(ids: list[int], logprobs: list[float]) -> tuple[tuple[int, float], ...]:
    """Leave out the ids that only round the vocabulary up."""
    return tuple((i, logprob) for i, logprob in zip(ids, logprobs, strict=True) if logprob > -math.inf)
