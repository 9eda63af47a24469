"""Promises of gpt_core.model.gpt."""

import numpy as np
import pytest
import torch

from gpt_core.errors import SettingsError
from gpt_core.model.gpt import GPT, embedded, gelu_by_sigmoid, initial_values
from gpt_core.model.loss import token_losses
from gpt_core.model.presets import PRESETS, ModelShape
from tests.reference import gpt2_numpy

TINY = ModelShape(n_layer=3, n_head=2, n_embd=16, num_positions=24, vocabulary_size=61)


def make_lively(shape, seed=0):
    """A model whose every tensor matters: biases and LayerNorms are not at 0 and 1."""
    model = GPT(shape).initialise(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def some_ids(shape, num_sequences, num_positions):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(shape.vocabulary_size, (num_sequences, num_positions), generator=generator)


@pytest.mark.parametrize("name", PRESETS)
def test_the_tensors_of_each_preset_add_up_to_its_published_count(name):
    model = GPT(PRESETS[name].shape, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PRESETS[name].shape.num_parameters


@pytest.mark.parametrize("band", [None, 3])
def test_the_forward_pass_equals_an_independent_one_in_float64(band):
    shape = ModelShape(3, 2, 16, 24, 61, attention_band=band)
    model = make_lively(shape)
    ids = some_ids(shape, 2, 24)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    with torch.no_grad():
        ours = model(ids).numpy()
    for row in range(2):
        oracle = gpt2_numpy.logits(ids[row].numpy(), weights, shape.n_layer, shape.n_head, band)
        np.testing.assert_allclose(ours[row], oracle, atol=1e-4, rtol=0)


def test_an_untrained_gpt2_has_the_loss_its_initialisation_implies():
    shape = PRESETS["gpt2"].shape
    model = GPT(shape).initialise(seed=0).eval()
    ids = some_ids(shape, 1, 257)
    with torch.no_grad():
        losses = token_losses(model.hidden(ids[:, :-1]), model.wte.weight, ids[:, 1:])
    assert losses.mean().item() == pytest.approx(10.978, abs=0.1)


def test_starting_values_are_keyed_by_seed_and_name_and_not_by_order():
    model = GPT(TINY).initialise(seed=5)
    alone = initial_values("h.1.mlp.c_fc.weight", (64, 16), TINY.n_layer, seed=5)
    assert torch.equal(model.get_parameter("h.1.mlp.c_fc.weight"), alone)
    assert not torch.equal(alone, initial_values("h.1.mlp.c_fc.weight", (64, 16), TINY.n_layer, seed=6))
    assert not torch.equal(alone, initial_values("h.0.mlp.c_fc.weight", (64, 16), TINY.n_layer, seed=5))


def test_projections_into_the_residual_stream_start_smaller_by_the_depth():
    size = (512, 512)
    assert initial_values("h.0.mlp.c_fc.weight", size, 8, 0).std().item() == pytest.approx(0.02, rel=0.02)
    assert initial_values("h.0.mlp.c_proj.weight", size, 8, 0).std().item() == pytest.approx(0.005, rel=0.02)


def test_no_position_sees_the_future():
    model = make_lively(TINY)
    ids = some_ids(TINY, 1, 20)
    changed = ids.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % TINY.vocabulary_size
    with torch.no_grad():
        assert torch.equal(model(ids)[0, :12], model(changed)[0, :12])


def test_more_positions_than_the_model_has_are_refused():
    with pytest.raises(SettingsError, match=r"25 positions.*at most 24"):
        GPT(TINY).initialise(0)(some_ids(TINY, 1, 25))


def test_dropout_acts_in_training_and_not_in_evaluation():
    model = GPT(ModelShape(1, 1, 8, 8, 16, dropout=0.5)).initialise(0)
    ids = some_ids(model.shape, 1, 8)
    with torch.no_grad():
        assert not torch.equal(model.train()(ids), model(ids))
        assert torch.equal(model.eval()(ids), model(ids))


def test_logits_equal_those_of_the_public_implementation():
    transformers = pytest.importorskip("transformers", reason="pip install transformers (a dev dependency)")
    model = make_lively(TINY)
    config = transformers.GPT2Config(
        vocab_size=61, n_positions=24, n_embd=16, n_layer=3, n_head=2, attn_implementation="eager"
    )
    peer = transformers.GPT2LMHeadModel(config).eval()
    state = peer.state_dict()
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    for name, parameter in model.named_parameters():
        state[f"transformer.{name}"].copy_(parameter.detach().t() if name.endswith(linear) else parameter.detach())
    ids = some_ids(TINY, 2, 24)
    with torch.no_grad():
        difference = (peer(ids).logits - model(ids)).abs().max().item()
    assert difference < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_compiler_is_given_is_the_same_function(dtype):
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    x = torch.linspace(-8, 8, 1001).to(dtype).requires_grad_()
    ours, library = gelu_by_sigmoid(x), torch.nn.functional.gelu(x, approximate="tanh")
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, library, atol=tolerance, rtol=tolerance)
    gradients = [torch.autograd.grad(out.float().pow(2).sum(), x)[0] for out in (ours, library)]
    torch.testing.assert_close(*gradients, atol=5 * tolerance, rtol=5 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_is_seen_4096_times_gets_all_of_its_gradient(dtype):
    table = torch.randn(5, 2).to(dtype).requires_grad_()
    ids = torch.tensor([[3] * 4096, [1] * 4096])
    rows = embedded(table, ids)
    assert torch.equal(rows, table[ids])
    rows.backward(torch.ones_like(rows))
    assert table.grad is not None
    assert table.grad[:, 0].tolist() == [0, 4096, 0, 4096, 0]
