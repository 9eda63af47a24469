"""Promises of gpt_core.model.presets."""

import pytest

from gpt_core.errors import SettingsError
from gpt_core.model.presets import PRESETS, ModelShape, find_preset

EXACT_COUNTS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-small": 125_226_240,
    "gpt3-medium": 355_871_744,
    "gpt3-large": 760_300_032,
    "gpt3-xl": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280,
    "gpt3-6.7b": 6_658_404_352,
    "gpt3-13b": 12_853_386_240,
    "gpt3-175b": 174_604_259_328,
}


def test_there_is_a_preset_for_each_published_size_and_no_other():
    assert set(PRESETS) == set(EXACT_COUNTS)


@pytest.mark.parametrize("name", EXACT_COUNTS)
def test_a_preset_has_exactly_the_parameters_of_its_paper(name):
    assert find_preset(name).shape.num_parameters == EXACT_COUNTS[name]


def test_one_block_of_the_smallest_gpt2_holds_7087872_parameters():
    assert find_preset("gpt2").shape.num_block_parameters == 7_087_872


def test_heads_that_do_not_divide_the_width_are_refused_with_ones_that_do():
    with pytest.raises(SettingsError, match=r"do not divide n_embd 384.*try 4"):
        ModelShape(4, 5, 384, 64, 256)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match=r"gpt2-xl.*gpt3-175b"):
        find_preset("gpt4")


@pytest.mark.parametrize(
    "change",
    [{"n_layer": 0}, {"n_head": True}, {"num_positions": -1}, {"dropout": 1.0}, {"attention_band": 0}],
)
def test_an_impossible_shape_cannot_be_made(change):
    settings = {"n_layer": 1, "n_head": 2, "n_embd": 8, "num_positions": 4, "vocabulary_size": 16} | change
    with pytest.raises(SettingsError, match=next(iter(change))):
        ModelShape(**settings)


def test_flops_a_token_follow_the_palm_convention():
    assert find_preset("gpt2").shape.flops_a_token(1024) == pytest.approx(855.2e6, abs=0.05e6)


def test_the_untrained_loss_of_the_smallest_gpt2_is_10_978():
    assert find_preset("gpt2").shape.untrained_loss == pytest.approx(10.978, abs=6e-4)
