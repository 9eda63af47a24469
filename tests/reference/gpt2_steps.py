"""Every intermediate value of GPT-2's forward pass in float64 NumPy, written from the paper.

Beside ``gpt2_numpy``, whose functions of one line it shares: attention here is by the whole matrix
with the mask as -inf, there query by query with only the keys in sight.
"""

import numpy as np

from tests.reference.gpt2_numpy import gelu, layer_norm, softmax


def forward(ids, weights, n_layer, n_head, attention_band=None):
    """Return token and position embeddings, a dictionary of arrays for each layer, and the logits of every stage."""
    w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    count = len(ids)
    token, position = w["wte.weight"][list(ids)], w["wpe.weight"][:count]
    stages, layers = [token + position], []
    for index in range(n_layer):
        band = attention_band if attention_band is not None and index % 2 == 1 else count
        layers.append(one_layer(stages[-1], w, f"h.{index}", n_head, band))
        stages.append(layers[-1]["after"])
    lens = [layer_norm(x, w["ln_f.weight"], w["ln_f.bias"]) @ w["wte.weight"].T for x in stages]
    return {"token": token, "position": position, "layers": layers, "lens": lens}


def one_layer(x, w, prefix, n_head, band):
    count, width = x.shape
    normed = layer_norm(x, w[f"{prefix}.ln_1.weight"], w[f"{prefix}.ln_1.bias"])
    qkv = normed @ w[f"{prefix}.attn.c_attn.weight"].T + w[f"{prefix}.attn.c_attn.bias"]
    query, key, value = (
        np.stack([part[:, head * width // n_head : (head + 1) * width // n_head] for head in range(n_head)])
        for part in (qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :])
    )
    scores = np.einsum("hid,hjd->hij", query, key) / np.sqrt(width // n_head)
    distance = np.subtract.outer(np.arange(count), np.arange(count))
    weights = softmax(np.where((distance >= 0) & (distance < band), scores, -np.inf))
    mixed = np.einsum("hij,hjd->hid", weights, value)
    joined = np.concatenate(list(mixed), axis=1)
    attention = joined @ w[f"{prefix}.attn.c_proj.weight"].T + w[f"{prefix}.attn.c_proj.bias"]
    middle = x + attention
    inner = layer_norm(middle, w[f"{prefix}.ln_2.weight"], w[f"{prefix}.ln_2.bias"])
    inner = gelu(inner @ w[f"{prefix}.mlp.c_fc.weight"].T + w[f"{prefix}.mlp.c_fc.bias"])
    mlp = inner @ w[f"{prefix}.mlp.c_proj.weight"].T + w[f"{prefix}.mlp.c_proj.bias"]
    return {
        "before": x, "normed": normed, "query": query, "key": key, "value": value, "scores": scores,
        "weights": weights, "mixed": mixed, "attention": attention, "middle": middle, "mlp": mlp,
        "after": middle + mlp,
    }  # fmt: skip
