"""Promises of gpt_core.model.attention, against sums written out in float64."""

import numpy as np
import pytest
import torch

from gpt_core.model import attention
from gpt_core.model.attention import band_mask, blocked_attention, causal_attention

B, H, T, D = 2, 2, 11, 4


def make_qkv(num_positions=T, width=D, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, B, H, num_positions, width, generator=generator)
    return qkv.to(dtype).requires_grad_()


def oracle(qkv, grad, band):
    """Output and gradients of q, k, v, query by query; ds_j = p_j (dp_j - sum_i p_i dp_i)."""
    q, k, v, g = (x.double().detach().numpy() for x in (*qkv, grad))
    out, gradients = np.zeros_like(q), np.zeros((3, *q.shape))
    for b, h, i in np.ndindex(q.shape[:3]):
        seen = slice(max(0, i - band + 1) if band else 0, i + 1)
        scores = k[b, h, seen] @ q[b, h, i] / np.sqrt(q.shape[-1])
        p = np.exp(scores - scores.max())
        p /= p.sum()
        out[b, h, i] = p @ v[b, h, seen]
        dp = v[b, h, seen] @ g[b, h, i]
        ds = p * (dp - p @ dp) / np.sqrt(q.shape[-1])
        gradients[0, b, h, i] = ds @ k[b, h, seen]
        gradients[1, b, h, seen] += np.outer(ds, q[b, h, i])
        gradients[2, b, h, seen] += np.outer(p, g[b, h, i])
    return out, gradients


@pytest.mark.parametrize("function", [causal_attention, blocked_attention])
@pytest.mark.parametrize("block_rows", [1, 4, 11, 16])
@pytest.mark.parametrize("band", [None, 1, 3, 11, 50])
def test_output_and_gradients_are_those_of_attention_written_out(monkeypatch, function, block_rows, band):
    monkeypatch.setattr(attention, "BLOCK_ROWS", block_rows)
    qkv = make_qkv()
    grad = torch.randn(B, H, T, D, generator=torch.Generator().manual_seed(1))
    out = function(*qkv, band=band)
    (found,) = torch.autograd.grad(out, qkv, grad)
    expected, gradients = oracle(qkv, grad, band)
    np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(found.numpy(), gradients, atol=1e-5)


def test_bf16_in_blocks_is_near_fp32_and_stays_bf16():
    exact, rough = make_qkv(), make_qkv(dtype=torch.bfloat16)
    out = blocked_attention(*rough, band=5)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), blocked_attention(*exact, band=5), atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("block_rows", [4, 16])
def test_bf16_on_a_cpu_needs_no_fused_kernel_and_its_gradients_are_those_written_out(monkeypatch, block_rows):
    monkeypatch.setattr(attention, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", None)
    qkv = make_qkv(dtype=torch.bfloat16)
    grad = torch.randn(B, H, T, D, generator=torch.Generator().manual_seed(1)).bfloat16()
    out = causal_attention(*qkv)
    (found,) = torch.autograd.grad(out, qkv, grad)
    expected, gradients = oracle(qkv, grad, None)
    np.testing.assert_allclose(out.detach().float().numpy(), expected, atol=2e-2)
    np.testing.assert_allclose(found.float().numpy(), gradients, atol=4e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_same_seed_gives_the_same_bits(dropout):
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        qkv = make_qkv()
        out = causal_attention(*qkv, band=7, dropout=dropout)
        found.append((out, torch.autograd.grad(out.square().sum(), qkv)[0]))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_dropout_sets_its_share_of_the_probabilities_to_0_and_raises_the_others():
    num_positions = 64
    q, k, _ = make_qkv(num_positions, num_positions)
    eye = torch.eye(num_positions).expand(B, H, -1, -1)  # as values they show the probabilities themselves
    whole = causal_attention(q, k, eye)
    torch.manual_seed(0)
    dropped = causal_attention(q, k, eye, dropout=0.25)
    is_kept = dropped > 0
    torch.testing.assert_close(dropped[is_kept], whole[is_kept] / 0.75)
    assert is_kept[whole > 0].float().mean().item() == pytest.approx(0.75, abs=0.02)


def test_a_band_of_two_sees_itself_and_its_predecessor():
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert band_mask(4, 2, torch.device("cpu")).int().tolist() == expected


@pytest.mark.parametrize(("band", "widest"), [(3, 6), (None, 16)])
def test_a_block_reads_only_the_positions_its_rows_see(monkeypatch, band, widest):
    monkeypatch.setattr(attention, "BLOCK_ROWS", 4)
    widths = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: widths.append(x.shape[-1]) or softmax(x, dim))
    blocked_attention(*make_qkv(16), band=band)
    assert max(widths) == widest
