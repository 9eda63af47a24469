"""Everything the page can ask about one token of one prompt, packed to lie inside the page itself.

Read by ``cluster/serving/page/source.js``. Numbers are base64 of little-endian arrays: float32, but for
attention weights, which are whole 65535ths.

Shapes: H heads, N the entries of a triangle of T tokens, D head width, C width.
"""

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt_core.inspection.activations import LayerActivations
from gpt_core.inspection.inspection import Inspector, Query

_WEIGHT_UNITS = 65535


def record(inspector: Inspector, ids: tuple[int, ...], position: int | None = None) -> dict[str, Any]:
    """Return plain JSON values: the answer to all questions, and every layer's numbers.

    Args:
        inspector: The model.
        ids: The prompt.
        position: The token whose way is recorded, from 0; None is the last.

    Raises:
        UserError: No token, too many, or an unknown one; a position that is not there.
    """
    answer = inspector.inspect(Query(ids, ("next", "heads", "lens", "anatomy"), position))
    activations = inspector.activations(ids)
    place = answer["position"]
    return {
        "answer": answer,
        "token": _floats(activations.token[place]),
        "position": _floats(activations.position[place]),
        "layers": [_layer(layer, place) for layer in activations.layers],
    }


def _layer(layer: LayerActivations, place: int) -> dict[str, Any]:
    weights_HTT = layer.weights.cpu()
    rows, columns = torch.tril_indices(*weights_HTT.shape[1:])
    weights_HN = (weights_HTT[:, rows, columns] * _WEIGHT_UNITS).round().numpy().astype("<u2")
    seen = layer.visible[place].nonzero()[:, 0].tolist()
    vectors = {
        "before": layer.before,
        "normed": layer.normed,
        "attention": layer.attention,
        "middle": layer.before + layer.attention,
        "mlp": layer.mlp,
        "after": layer.after,
    }
    heads = {
        "query": layer.q[:, place],
        "key": layer.k[:, place],
        "value": layer.v[:, place],
        "mixed": layer.mixed[:, place],
        "scores": layer.scores[:, place],
        "weights": weights_HTT[:, place],
    }
    return {
        "attention": _packed(weights_HN),
        "vectors": {name: _floats(vector[place]) for name, vector in vectors.items()},
        "heads": {name: _floats(vector) for name, vector in heads.items()},
        "sees": [seen[0], seen[-1]],
    }


def _floats(tensor: Tensor) -> str:
    return _packed(tensor.cpu().numpy().astype("<f4"))


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
