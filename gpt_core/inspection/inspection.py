"""What a model computes for a prompt, as plain values for the page and for programs.

Called by the replicas of `herd serve` for ``POST /v1/inspect`` and by `herd inspect`. Numbers are
the fp32 values themselves, never rounded; only the parts asked for are computed and returned.

Shapes: T positions, H heads, S stages of the stream (the embedding and one a layer), V vocabulary.
"""

import base64
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt_core.errors import UserError
from gpt_core.finetuning.templates import separators_of
from gpt_core.inspection.activations import Activations, logits_of, run_forward
from gpt_core.model.anatomy import rows_of
from gpt_core.model.presets import ModelShape
from gpt_core.tokens.token_texts import find_notes, find_separator, text_of_token
from gpt_core.tokens.tokenizer import Tokenizer

PARTS = ("next", "heads", "attention", "step", "lens", "anatomy")
MAX_TOKENS = 128
"""Tokens of a prompt at most: every map of attention has as many rows and columns."""
NUM_CANDIDATES = 200
TEMPERATURES = tuple(tenths / 10 for tenths in range(1, 21))
_LENS_TOKENS = 3
_MAX_HEADS_BYTES = 100_000
_MAX_CELLS = 24
_KEPT_BYTES = 64 * 2**20
_PIECE = 32_768


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of a prompt.

    Raises:
        UserError: A part that does not exist.
    """

    ids: tuple[int, ...]
    parts: tuple[str, ...] = ("next",)
    """Of ``PARTS``."""
    position: int | None = None
    """The token looked at, from 0; None is the last."""
    layer: int = 0
    head: int = 0

    def __post_init__(self) -> None:
        unknown = next((part for part in self.parts if part not in PARTS), None)
        if unknown is not None:
            raise UserError("show", repr(unknown), "some of " + ", ".join(PARTS), "correct the name")


class Inspector:
    """A model to look into. Safe to call from several threads, which take turns.

    Args:
        weights: fp32 tensors under the parameter names of ``model.GPT``; kept, not changed.
        shape: The model's sizes. Ids past the tokenizer's vocabulary are padding, and never candidates.
        tokenizer: Names the tokens.
        device: Where to compute.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], shape: ModelShape, tokenizer: Tokenizer, device: str = "cpu"
    ) -> None:
        self.shape = shape
        self.tokenizer = tokenizer
        self.max_tokens = min(MAX_TOKENS, shape.num_positions)
        self._weights = {name: tensor.detach().to(device) for name, tensor in weights.items()}
        self._known = {**self._weights, "wte.weight": self._weights["wte.weight"][: tokenizer.vocabulary_size]}
        self._separators = separators_of(tokenizer)
        self._lock = threading.Lock()
        self._recent: OrderedDict[tuple[int, ...], Activations] = OrderedDict()
        self._anatomy: dict[str, Any] | None = None

    def inspect(self, query: Query) -> dict[str, Any]:
        """Return what was asked for: plain values and float32 arrays, ready for JSON.

        Always there are ``text``, ``tokens``, ``position``, ``layer``, ``head``, ``model`` (sizes),
        and where they exist ``separator`` and ``notes``; then a field for each part of the query.

        Raises:
            UserError: No token, too many, or an unknown one; a position, layer or head that is not there.
        """
        query = self._checked(query)
        with self._lock, torch.inference_mode():
            answer = self._described(query)
            if any(part != "anatomy" for part in query.parts):
                answer |= self._parts(query, self._activations(query.ids))
            if "anatomy" in query.parts:
                answer["anatomy"] = self._whole_anatomy()
        return answer

    def activations(self, ids: tuple[int, ...]) -> Activations:
        """Return all activations of a prompt.

        Raises:
            UserError: No token, too many, or an unknown one.
        """
        self._checked(Query(ids))
        with self._lock:
            return self._activations(ids)

    def _checked(self, query: Query) -> Query:
        num_tokens = len(query.ids)
        if not 1 <= num_tokens <= self.max_tokens:
            remedy = "shorten the prompt" if num_tokens else "begin with the end-of-text token"
            raise UserError("prompt", f"{num_tokens} tokens", f"1 to {self.max_tokens} to look into", remedy)
        unknown = next((token for token in query.ids if not 0 <= token < self.tokenizer.vocabulary_size), None)
        if unknown is not None:
            raise UserError(
                "prompt", f"token id {unknown}", f"ids of 0 to {self.tokenizer.vocabulary_size - 1}", "correct it"
            )
        position = num_tokens - 1 if query.position is None else query.position
        _require_below("position", position, num_tokens)
        _require_below("layer", query.layer, self.shape.n_layer)
        _require_below("head", query.head, self.shape.n_head)
        return replace(query, position=position)

    def _activations(self, ids: tuple[int, ...]) -> Activations:
        """Return the activations, of a few recent prompts without computing: a reader looks at head after head."""
        found = self._recent.pop(ids, None) or run_forward(self._weights, self.shape, ids)
        self._recent[ids] = found
        while len(self._recent) > 1 and sum(kept.num_bytes for kept in self._recent.values()) > _KEPT_BYTES:
            self._recent.popitem(last=False)
        return found

    def _described(self, query: Query) -> dict[str, Any]:
        texts = [text_of_token(token, self.tokenizer) for token in query.ids]
        names = [text.text for text in texts]
        answer: dict[str, Any] = {
            "text": self.tokenizer.decode(query.ids),
            "tokens": [text.to_dict() for text in texts],
            "position": query.position,
            "layer": query.layer,
            "head": query.head,
            "model": {
                **self.shape.to_dict(),
                "num_parameters": self.shape.num_parameters,
                "num_known": self.tokenizer.vocabulary_size,
                "specials": self.tokenizer.specials,
                "is_music": self.tokenizer.backend == "music",
            },
            "max_tokens": self.max_tokens,
        }
        is_music = self.tokenizer.backend == "music"
        found = {"separator": find_separator(names, self._separators), "notes": is_music and find_notes(query.ids)}
        return answer | {name: value for name, value in found.items() if value}

    def _parts(self, query: Query, activations: Activations) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        layer = activations.layers[query.layer]
        assert query.position is not None
        if "heads" in query.parts:
            answer["heads"] = small_maps(activations)
        if "attention" in query.parts:
            weights_TT = layer.weights[query.head]
            answer["attention"] = [_array(row[: index + 1]) for index, row in enumerate(weights_TT)]
        if "step" in query.parts:
            answer["step"] = step_of(activations, query.layer, query.head, query.position)
        if {"next", "lens"} & set(query.parts):
            answer |= self._predictions(activations, query)
        return answer

    def _predictions(self, activations: Activations, query: Query) -> dict[str, Any]:
        assert query.position is not None
        stream_SC = activations.stream(query.position)
        stages_SV = logits_of(self._known, stream_SC if "lens" in query.parts else stream_SC[-1:]).cpu()
        answer: dict[str, Any] = {}
        if "next" in query.parts:
            answer["next"] = self._distribution(stages_SV[-1])
        if "lens" in query.parts:
            answer["lens"] = self._lens(stages_SV)
        return answer

    def _distribution(self, logits_V: Tensor) -> dict[str, Any]:
        """Return the leading candidates, and what is needed to know their probabilities at any temperature sent."""
        num_candidates = min(NUM_CANDIDATES, len(logits_V))
        order = logits_V.topk(num_candidates)
        total = float(torch.logsumexp(logits_V.double(), 0))
        is_rest = torch.ones(len(logits_V), dtype=torch.bool)
        is_rest[order.indices] = False
        rest_R = logits_V[is_rest].double()
        rest = [float(torch.logsumexp(rest_R / temperature, 0)) for temperature in TEMPERATURES]
        columns = zip(order.indices.tolist(), order.values.tolist(), strict=True)
        return {
            "candidates": [
                {**self._named(token), "logit": logit, "probability": math.exp(logit - total)}
                for token, logit in columns
            ],
            "logsumexp": total,
            "temperatures": TEMPERATURES,
            "rest": {"count": len(rest_R), "logsumexp": [value if math.isfinite(value) else None for value in rest]},
        }

    def _lens(self, stages_SV: Tensor) -> list[dict[str, Any]]:
        """Return what the model would choose after each stage, and how it stands to what it chooses in the end."""
        chosen = int(stages_SV[-1].argmax())
        stages = []
        for logits_V in stages_SV:
            log_probabilities_V = logits_V.double().log_softmax(0)
            best = log_probabilities_V.topk(min(_LENS_TOKENS, len(logits_V)))
            columns = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
            stages.append({
                "top": [{**self._named(token), "probability": value} for token, value in columns],
                "chosen": {
                    **self._named(chosen),
                    "probability": float(log_probabilities_V[chosen].exp()),
                    "rank": int((logits_V > logits_V[chosen]).sum()) + 1,
                },
            })  # fmt: skip
        return stages

    def _whole_anatomy(self) -> dict[str, Any]:
        if self._anatomy is None:
            tensors = []
            for row in rows_of(self.shape):
                layers = range(self.shape.n_layer) if "*" in row.name else (None,)
                for layer in layers:
                    name = row.name.replace("*", str(layer))
                    mean, deviation = mean_and_deviation(self._weights[name])
                    tensors.append({
                        "name": name, "layer": layer, "size": row.size, "role": row.role,
                        "num_parameters": math.prod(row.size), "mean": mean, "deviation": deviation,
                    })  # fmt: skip
            totals = {"num_parameters": self.shape.num_parameters, "block": self.shape.num_block_parameters}
            self._anatomy = {"tensors": tensors, **totals}
        return self._anatomy

    def _named(self, token: int) -> dict[str, Any]:
        return text_of_token(token, self.tokenizer).to_dict()


def mean_and_deviation(tensor: Tensor) -> tuple[float, float | None]:
    """Return a tensor's mean and standard deviation, None of a single number.

    Taken in pieces that stay in a core's cache: a tenth of the time of torch.std_mean, 0.5 s of 124M parameters.
    """
    numbers_N = tensor.cpu().numpy().ravel()
    mean = numbers_N.mean()
    pieces = (numbers_N[first : first + _PIECE] - mean for first in range(0, len(numbers_N), _PIECE))
    squares = sum(float(piece @ piece) for piece in pieces)
    return float(mean), math.sqrt(squares / (len(numbers_N) - 1)) if len(numbers_N) > 1 else None


def small_maps(activations: Activations) -> dict[str, Any]:
    """Return a small map of every head: its weights as bytes up to 255, row by row of a triangle of ``cells`` rows.

    A cell is the highest weight of the tokens it stands for; with few tokens it stands for one. ``maps`` holds
    a layer an entry, its heads one behind the other, in base64.
    """
    num_heads, num_positions = len(activations.layers[0].q), activations.num_positions
    cells = min(_MAX_CELLS, num_positions)
    while cells > 1 and len(activations.layers) * num_heads * cells * (cells + 1) // 2 > _MAX_HEADS_BYTES:
        cells -= 1
    cell_T = torch.arange(num_positions) * cells // num_positions
    rows, columns = torch.tril_indices(cells, cells)
    maps = []
    for layer in activations.layers:
        small_HEE = _highest_in_cells(layer.weights.cpu(), cell_T, cells)
        bytes_HN = (small_HEE[:, rows, columns] * 255).round().to(torch.uint8).numpy()
        maps.append(base64.b64encode(bytes_HN.tobytes()).decode("ascii"))
    return {"cells": cells, "maps": maps}


def step_of(activations: Activations, layer: int, head: int, position: int) -> dict[str, Any]:
    """Return one token's way through one layer: every vector in the order it arises, and one head's scores.

    ``scores`` has all tokens, ``masked`` None (JSON: null) where the mask forbids to look, ``weights`` 0 there.
    """
    at = activations.layers[layer]
    scores_T = at.scores[head, position]
    visible_T = at.visible[position]
    masked = [score if seen else None for score, seen in zip(scores_T.tolist(), visible_T.tolist(), strict=True)]
    vectors = {
        "token": activations.token,
        "position": activations.position,
        "before": at.before,
        "normed": at.normed,
        "query": at.q[head],
        "key": at.k[head],
        "value": at.v[head],
        "mixed": at.mixed[head],
        "attention": at.attention,
        "middle": at.before + at.attention,
        "mlp": at.mlp,
        "after": at.after,
    }
    weights_T = at.weights[head, position]
    numbers = {"scores": _array(scores_T), "masked": masked, "weights": _array(weights_T)}
    return {**{name: _array(vector[position]) for name, vector in vectors.items()}, **numbers}


def _highest_in_cells(weights_HTT: Tensor, cell_T: Tensor, cells: int) -> Tensor:
    num_heads, num_positions, _ = weights_HTT.shape
    narrow_HTE = torch.zeros(num_heads, num_positions, cells)
    narrow_HTE.scatter_reduce_(2, cell_T.expand(num_heads, num_positions, -1), weights_HTT, "amax")
    small_HEE = torch.zeros(num_heads, cells, cells)
    return small_HEE.scatter_reduce_(1, cell_T[None, :, None].expand(num_heads, -1, cells), narrow_HTE, "amax")


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.cpu().numpy())


def _require_below(name: str, value: int, limit: int) -> None:
    if not 0 <= value < limit:
        raise UserError(name, f"{value}", f"0 to {limit - 1}", "correct it")
