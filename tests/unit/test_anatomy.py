"""Promises of gpt_core.model.anatomy."""

import pytest

from gpt_core.model.anatomy import rows_of, table
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_the_rows_add_up_to_the_models_parameters(name):
    shape = PRESETS[name].shape
    assert sum(row.num_parameters for row in rows_of(shape)) == shape.num_parameters


def test_names_and_sizes_are_those_of_the_model():
    shape = PRESETS["gpt2"].shape
    model = GPT(shape, device="meta")
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {}
    for row in rows_of(shape):
        layers = range(row.copies) if "*" in row.name else [""]
        found |= {row.name.replace("*", str(layer)): row.size for layer in layers}
    assert found == expected


def test_the_table_shows_the_totals_and_says_where_the_copied_one_errs():
    text = table(PRESETS["gpt2"].shape)
    assert "124,439,808" in text
    assert "7,087,872" in text
    assert "124,410,624" in text
    assert 124_439_808 - 124_410_624 == 29_184
    assert "29,184 too few" in text


def test_other_sizes_carry_no_note():
    assert "copied" not in table(PRESETS["gpt2-medium"].shape)
