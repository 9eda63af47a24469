"""An oracle for drawing tokens: plain Python and float64 NumPy, one row at a time, nothing shared with gpt_core."""

import numpy as np

_MASK = 2**64 - 1


def splitmix64(state):
    """The finaliser of Steele, Lea and Flood 2014 (Vigna's constants) on unsigned Python integers."""
    z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def uniform(key, position):
    state = (key % 2**64 + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    return (splitmix64(state) >> 11) / 2**53


def kept_probabilities(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Return the renormalised float64 probabilities after the filters, zero where a token was dropped."""
    logits = np.asarray(logits, dtype=np.float64)
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    scaled = (logits - logits.max()) / temperature
    p = np.exp(scaled)
    kept = ranked[:top_k] if top_k else ranked
    total = sum(p[i] for i in kept)
    if top_p is not None and top_p < 1:
        share, nucleus = 0.0, []
        for i in kept:
            if share >= top_p:
                break
            nucleus.append(i)
            share += p[i] / total
        kept = nucleus
    if min_p is not None:
        kept = [i for i in kept if p[i] >= min_p * p.max()]
    out = np.zeros(len(logits))
    out[kept] = p[kept]
    return out / out.sum()


def draw(logits, u, in_rank_order, **filters):
    p = kept_probabilities(logits, **filters)
    order = sorted(range(len(p)), key=lambda i: (-logits[i], i)) if in_rank_order else list(range(len(p)))
    passed = np.cumsum(p[order]) > u
    return order[int(np.argmax(passed))]
