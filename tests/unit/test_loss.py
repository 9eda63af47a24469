"""Promises of gpt_core.model.loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt_core.model import loss
from tests.reference import gpt2_numpy


def make_case(num_rows=96, width=8, vocabulary_size=33):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, num_rows // 2, width, generator=generator)
    weight = torch.randn(vocabulary_size, width, generator=generator)
    targets = torch.randint(vocabulary_size, (2, num_rows // 2), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def as_on_a_gpu(monkeypatch):
    """Have a compiled loss compute what a GPU's compiler is given, without the compiler."""
    softmaxes = {False: loss._exponentiate, True: loss._exponentiate_in_one}
    monkeypatch.setattr(loss, "_softmax_on", lambda device, compiled: softmaxes[compiled])


@pytest.mark.parametrize("chunk_bytes", [1, 32 * 33 * 4, 10**9])
def test_loss_and_gradients_equal_the_plain_ones_for_any_chunk(monkeypatch, chunk_bytes):
    monkeypatch.setattr(loss, "CPU_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(loss, "CPU_BLOCK_BYTES", chunk_bytes // 7)
    hidden, weight, targets = make_case()
    plain = F.cross_entropy(F.linear(hidden, weight).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(plain, (hidden, weight))
    ours = loss.next_token_loss(hidden, weight, targets)
    found = torch.autograd.grad(ours, (hidden, weight))
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(found, expected)


def test_a_scaled_loss_scales_the_gradients():
    hidden, weight, targets = make_case()
    plain = torch.autograd.grad(loss.next_token_loss(hidden, weight, targets), (hidden, weight))
    scaled = torch.autograd.grad(loss.next_token_loss(hidden, weight, targets) * 3.0, (hidden, weight))
    torch.testing.assert_close(scaled, tuple(3.0 * g for g in plain))


def test_token_losses_average_to_the_reference_cross_entropy():
    hidden, weight, targets = make_case()
    losses = loss.token_losses(hidden, weight, targets)
    logits = hidden.detach().double().numpy().reshape(96, 8) @ weight.detach().double().numpy().T
    assert losses.shape == targets.shape
    assert losses.mean().item() == pytest.approx(gpt2_numpy.cross_entropy(logits, targets.numpy().ravel()), abs=1e-5)


def test_bf16_inputs_give_an_fp32_loss_near_the_fp32_one():
    hidden, weight, targets = make_case()
    exact = loss.next_token_loss(hidden, weight, targets).item()
    rough = loss.next_token_loss(hidden.bfloat16(), weight.bfloat16(), targets)
    assert rough.dtype == torch.float32
    np.testing.assert_allclose(rough.item(), exact, rtol=2e-2)


@pytest.mark.parametrize("chunk_bytes", [1, 10**9])
def test_what_the_compiler_is_given_is_the_same_loss_with_the_same_gradients(monkeypatch, chunk_bytes):
    monkeypatch.setattr(loss, "CPU_CHUNK_BYTES", chunk_bytes)
    as_on_a_gpu(monkeypatch)
    hidden, weight, targets = make_case()
    rough = hidden.bfloat16(), weight.bfloat16()
    plain = F.cross_entropy(F.linear(*rough).float().flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(plain, rough)
    ours = loss.next_token_loss(*rough, targets, compiled=True)
    torch.testing.assert_close(ours, plain, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(torch.autograd.grad(ours, rough), expected, atol=2e-3, rtol=5e-2)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_target_that_is_all_but_certain_keeps_its_gradient_in_bf16(monkeypatch, compiled):
    """In bf16 e - s would be 0 where both round to 1; the difference is taken before it is rounded."""
    as_on_a_gpu(monkeypatch)
    hidden = torch.ones(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[8.0], [0.0]], dtype=torch.bfloat16)
    (grad,) = torch.autograd.grad(loss.next_token_loss(hidden, weight, torch.tensor([[0]]), compiled=compiled), hidden)
    wrong = 1 / (1 + np.exp(8.0))  # probability of the other token; dloss/dhidden = -8 wrong
    assert grad.item() == pytest.approx(-8 * wrong, rel=2e-2)


def test_logits_far_beyond_the_range_of_exp_keep_their_loss():
    hidden = torch.tensor([[[1.0], [-1.0]]])
    weight = torch.tensor([[500.0], [0.0], [-500.0]])
    losses = loss.token_losses(hidden, weight, torch.tensor([[1, 1]]))
    assert losses.tolist() == [[500.0, 500.0]]


def gradients_in_float64(hidden, weight, targets):
    """(softmax - onehot) / N of the float64 logits, times the other factor of the product."""
    x, w, t = (tensor.detach().double().numpy() for tensor in (hidden.flatten(0, 1), weight, targets.flatten()))
    logits = x @ w.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(t)), t.astype(int)] -= 1.0
    p /= len(t)
    return (p @ w).reshape(hidden.shape), p.T @ x


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_gradients_of_many_chunks_are_within_bf16s_rounding_of_those_in_float64(monkeypatch, compiled):
    """64 chunks of which each adds as much: a sum kept in bf16 would lose most of the later ones."""
    monkeypatch.setattr(loss, "CPU_CHUNK_BYTES", 1)
    as_on_a_gpu(monkeypatch)
    hidden, weight, targets = make_case(num_rows=1024)
    rough = (0.1 * hidden + 1.0).bfloat16(), (0.1 * weight).bfloat16()
    found = torch.autograd.grad(loss.next_token_loss(*rough, targets, compiled=compiled), rough)
    for ours, exact in zip(found, gradients_in_float64(*rough, targets), strict=True):
        error = np.linalg.norm(ours.float().numpy() - exact) / np.linalg.norm(exact)
        assert error < 4e-3


def test_a_head_that_is_padded_gives_the_same_loss_and_gradients(monkeypatch):
    hidden, weight, targets = make_case()
    assert weight.shape[0] % loss.VOCABULARY_MULTIPLE
    plain = loss.next_token_loss(hidden, weight, targets)
    expected = torch.autograd.grad(plain, (hidden, weight))
    monkeypatch.setattr(loss, "CPU_LEAST_PADDED", 1)
    monkeypatch.setattr(loss, "CPU_CHUNK_BYTES", 32 * 33 * 4)
    padded = loss.next_token_loss(hidden, weight, targets)
    torch.testing.assert_close(padded, plain)
    torch.testing.assert_close(torch.autograd.grad(padded, (hidden, weight)), expected)


@pytest.mark.parametrize(
    ("num_rows", "most", "rows"), [(32768, 5328, 4096), (512, 656, 512), (4096, 656, 512), (7, 3, 3)]
)
def test_chunks_are_equal_where_a_nearby_number_of_them_divides_the_rows(num_rows, most, rows):
    assert loss.even_rows(num_rows, most) == rows
