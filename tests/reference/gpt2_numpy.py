"""GPT-2's forward pass in float64 NumPy, written from the paper and independent of gpt_core.

Slow and plain on purpose: an oracle for tests. ``weights`` maps the names of a checkpoint to
arrays; linear weights are [out, in].
"""

import numpy as np


def gelu(x):
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, weight, bias):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(x, w, prefix, n_head, band):
    """[T, C] -> [T, C], head by head and query by query, with only the keys that query may see."""
    num_positions, width = x.shape
    qkv = x @ w[f"{prefix}.c_attn.weight"].T + w[f"{prefix}.c_attn.bias"]
    q, k, v = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
    d = width // n_head
    out = np.zeros_like(x)
    for head in range(n_head):
        columns = slice(head * d, (head + 1) * d)
        for i in range(num_positions):
            first = 0 if band is None else max(0, i - band + 1)
            scores = k[first : i + 1, columns] @ q[i, columns] / np.sqrt(d)
            out[i, columns] = softmax(scores) @ v[first : i + 1, columns]
    return out @ w[f"{prefix}.c_proj.weight"].T + w[f"{prefix}.c_proj.bias"]


def mlp(x, w, prefix):
    inner = gelu(x @ w[f"{prefix}.c_fc.weight"].T + w[f"{prefix}.c_fc.bias"])
    return inner @ w[f"{prefix}.c_proj.weight"].T + w[f"{prefix}.c_proj.bias"]


def logits(ids, weights, n_layer, n_head, attention_band=None):
    """[T] ids -> [T, V] float64 logits; with a band, every second layer sees only that many positions."""
    w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    x = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)]
    for layer in range(n_layer):
        p = f"h.{layer}"
        band = attention_band if layer % 2 == 1 else None
        normed = layer_norm(x, w[f"{p}.ln_1.weight"], w[f"{p}.ln_1.bias"])
        x = x + attention(normed, w, f"{p}.attn", n_head, band)
        normed = layer_norm(x, w[f"{p}.ln_2.weight"], w[f"{p}.ln_2.bias"])
        x = x + mlp(normed, w, f"{p}.mlp")
    return layer_norm(x, w["ln_f.weight"], w["ln_f.bias"]) @ w["wte.weight"].T


def cross_entropy(logits_TV, targets):
    """Mean of -log softmax at the targets, in nats."""
    top = logits_TV.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits_TV - top).sum(-1)) + top[:, 0]
    return float(np.mean(log_sum - logits_TV[np.arange(len(targets)), targets]))
