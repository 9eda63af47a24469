"""Promises of gpt_core.training.layout: cuts that ranks can share by, and a norm that does not depend on them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.model.gpt import GPT
from gpt_core.model.presets import PRESETS, ModelShape
from gpt_core.training.layout import CHUNK_ELEMENTS, chunk_norms, clip_, layout_of


def layout_for(shape):
    return layout_of(GPT(shape, device="meta"))


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 70))
@settings(max_examples=30, deadline=None)
def test_parts_are_whole_chunks_and_together_the_buffer(num_layers, width, num_parts):
    layout = layout_for(ModelShape(num_layers, 1, width, 8, 67))
    for whole_matrices in (False, True):
        cuts = layout.cuts(num_parts, whole_matrices=whole_matrices)
        assert (cuts[0], cuts[-1], len(cuts)) == (0, layout.num_elements, num_parts + 1)
        assert list(cuts) == sorted(cuts)
        assert not any(cut % CHUNK_ELEMENTS for cut in cuts)
        if whole_matrices:
            assert not any(span.start < cut < span.stop for span in layout.matrices for cut in cuts)


def test_every_parameter_has_a_place_of_its_own():
    layout = layout_for(ModelShape(2, 2, 24, 16, 67))
    flat = torch.zeros(layout.num_elements)
    for view in layout.views(flat).values():
        view.add_(1)
    assert flat.max() == 1
    assert flat.sum() == sum(p.numel() for p in GPT(ModelShape(2, 2, 24, 16, 67), device="meta").parameters())


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_published_models_lose_less_than_a_thousandth_to_alignment(name):
    shape = PRESETS[name].shape
    assert layout_for(shape).num_elements < 1.001 * shape.num_parameters


def test_the_norm_of_parts_is_that_of_the_whole_to_the_bit_and_of_float64_to_rounding():
    gradient = torch.from_numpy(np.random.default_rng(0).standard_normal(7 * CHUNK_ELEMENTS).astype(np.float32))
    norms = chunk_norms(gradient)
    for cut in range(1, 7):
        parts = gradient.split([cut * CHUNK_ELEMENTS, (7 - cut) * CHUNK_ELEMENTS])
        assert torch.equal(torch.cat([chunk_norms(part) for part in parts]), norms)
    expected = np.linalg.norm(gradient.double().numpy())
    assert clip_(gradient.clone(), norms, 0.5, 1.0).item() == pytest.approx(0.5 * expected, rel=1e-6)


@pytest.mark.parametrize(("clip_norm", "expected"), [(2.0, 2.0), (1e9, 32.0)])
def test_a_gradient_is_scaled_and_then_limited_to_the_norm(clip_norm, expected):
    gradient = torch.ones(CHUNK_ELEMENTS)  # norm 64
    clip_(gradient, chunk_norms(gradient), 0.5, clip_norm)
    assert torch.linalg.vector_norm(gradient).item() == pytest.approx(expected, rel=1e-5)
