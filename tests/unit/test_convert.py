"""Promises of `herd export` and `herd import`."""

import json
import shutil

import pytest
import torch

from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Description
from jobs import cli

transformers = pytest.importorskip("transformers", reason="pip install transformers (a dev dependency)")
SHAPE = ModelShape(2, 2, 8, 16, 257)


def make_run(folder, vocabulary_size=257):
    shape = ModelShape(2, 2, 8, 16, vocabulary_size)
    weights = {name: parameter.detach() for name, parameter in GPT(shape).initialise(3).named_parameters()}
    tokenizer = load_tokenizer("bytes")
    described = {"name": "bytes", "digest": tokenizer.digest, "vocabulary_size": 257, "end_of_text": 256}
    checkpoint.write(folder, Description(7, 70, shape, tokenizer=described), weights, weights)
    return weights


def herd(capsys, *words):
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def convert_there_and_back(capsys, tmp_path):
    assert herd(capsys, "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf")[0] == 0
    words = ("--model", tmp_path / "hf", "--output", tmp_path / "back", "--tokenizer", "bytes")
    assert herd(capsys, "import", *words)[0] == 0
    return checkpoint.load(tmp_path / "back")


def test_weights_come_back_bit_for_bit(capsys, tmp_path):
    weights = make_run(tmp_path / "run")
    back = convert_there_and_back(capsys, tmp_path)
    assert back.weights.keys() == weights.keys()
    assert all(torch.equal(back.weights[name], weight) for name, weight in weights.items())
    assert (back.step, back.shape) == (0, SHAPE)
    assert back.tokenizer["name"] == "bytes"


def test_the_public_implementation_computes_the_same_from_an_export(capsys, tmp_path):
    weights = make_run(tmp_path / "run")
    herd(capsys, "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf")
    peer = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    ours = GPT(SHAPE).eval()
    ours.load_state_dict(weights)
    ids = torch.arange(32).view(2, 16)
    with torch.no_grad():
        assert torch.allclose(peer(ids).logits, ours(ids), atol=1e-5)
    text = "Hold the línes"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")(text).input_ids == list(text.encode())


def test_a_padded_vocabulary_is_stripped_on_the_way(capsys, tmp_path):
    weights = make_run(tmp_path / "run", vocabulary_size=320)
    back = convert_there_and_back(capsys, tmp_path)
    assert torch.equal(back.weights["wte.weight"], weights["wte.weight"][:257])


def test_a_folder_that_is_no_model_is_named(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = herd(capsys, "import", "--model", tmp_path / "empty", "--output", tmp_path / "run")
    assert code == 2
    path = tmp_path / "empty" / "config.json"
    assert err == f"{path}: found no such file or directory; expected a JSON file; check the path\n"


def test_a_folder_without_a_checkpoint_is_named(capsys, tmp_path):
    code, _, err = herd(capsys, "export", "--checkpoint", tmp_path, "--output", tmp_path / "hf")
    assert code == 2
    assert err == (
        f"{tmp_path}: found no whole checkpoint; expected a folder with checkpoint.json, or a run folder; train first\n"
    )


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(capsys, tmp_path):
    make_run(tmp_path / "run")
    herd(capsys, "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf")
    code, _, err = herd(capsys, "import", "--model", tmp_path / "hf", "--output", tmp_path / "back")
    assert code == 2
    assert err == (
        f"{tmp_path / 'hf' / 'config.json'}: vocab_size: found 257; expected at least 50257, that of tokenizer 'gpt2'; "
        "name the model's own tokenizer\n"
    )
    assert not (tmp_path / "back").exists()


def test_another_architecture_is_refused(capsys, tmp_path):
    make_run(tmp_path / "run")
    herd(capsys, "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "llama"}))
    words = ("--model", tmp_path / "hf", "--output", tmp_path / "back", "--tokenizer", "bytes")
    code, _, err = herd(capsys, "import", *words)
    assert code == 2
    assert err == f"{path}: model_type: found 'llama'; expected 'gpt2'; only GPT-2 models import\n"


def test_no_run_and_no_export_is_written_over(capsys, tmp_path):
    make_run(tmp_path / "run")
    convert_there_and_back(capsys, tmp_path)
    words = ("--model", tmp_path / "hf", "--output", tmp_path / "back", "--tokenizer", "bytes")
    code, _, err = herd(capsys, "import", *words)
    assert (code, "found checkpoints of a run; expected a new folder" in err) == (2, True)
    code, _, err = herd(capsys, "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf")
    assert (code, "found files; expected an empty or a new folder" in err) == (2, True)
    shutil.rmtree(tmp_path / "hf")
    assert herd(capsys, "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf")[0] == 0
