"""Promises of gpt_core.exchange.huggingface."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from gpt_core.errors import CheckpointError, StaleOutputError
from gpt_core.exchange.huggingface import export_model, import_model, merges_of, write_tokenizer
from gpt_core.model.gpt import GPT
from gpt_core.model.presets import PRESETS, ModelShape
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.tokens.vocabulary import GPT2_FILES_SHA256, format_ranks, gpt2_ranks
from gpt_core.training.checkpoint import Checkpoint, Description

transformers = pytest.importorskip("transformers", reason="pip install transformers (a dev dependency)")
GPT2_TOKENIZER = {"name": "gpt2", "vocabulary_size": 50257, "end_of_text": 50256}
BYTES = {"name": "bytes", "vocabulary_size": 257, "end_of_text": 256}


def lively_weights(shape):
    generator = torch.Generator().manual_seed(0)
    fresh = GPT(shape).initialise(0).named_parameters()
    return {name: p.detach() + 0.1 * torch.randn(p.shape, generator=generator) for name, p in fresh}


def make_checkpoint(shape, tokenizer):
    return Checkpoint(Path("run/step-1"), Description(1, 10, shape, tokenizer=tokenizer), lively_weights(shape))


def logits_of(shape, weights, ids):
    model = GPT(shape).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        return model(ids)


def largest_difference(shape, weights, folder, num_positions=16):
    peer = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = torch.randint(shape.vocabulary_size, (2, num_positions), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (peer(ids).logits - logits_of(shape, weights, ids)).abs().max().item()


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_the_public_implementation_computes_our_logits_from_an_export(tmp_path, name):
    published = PRESETS[name].shape  # its depth and heads, with heads of 4 instead of 64
    shape = ModelShape(published.n_layer, published.n_head, published.n_head * 4, 16, 257)
    checkpoint = make_checkpoint(shape, BYTES)
    folder = export_model(checkpoint, tmp_path / "hf")
    assert largest_difference(shape, checkpoint.weights, folder) < 1e-4


@pytest.mark.slow
def test_the_public_implementation_computes_our_logits_at_full_size(tmp_path):
    shape = PRESETS["gpt2"].shape
    weights = {name: p.detach() for name, p in GPT(shape).initialise(0).named_parameters()}
    checkpoint = Checkpoint(Path("run"), Description(1, 10, shape, tokenizer=GPT2_TOKENIZER), weights)
    folder = export_model(checkpoint, tmp_path / "hf")
    assert largest_difference(shape, weights, folder, 64) < 1e-4


SHAPE = ModelShape(2, 2, 8, 16, 257)


def test_an_export_imports_to_the_same_bits(tmp_path):
    checkpoint = make_checkpoint(SHAPE, BYTES)
    shape, weights = import_model(export_model(checkpoint, tmp_path / "hf"))
    assert shape == SHAPE
    assert weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(weights[name], checkpoint.weights[name]) for name in weights)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_the_public_implementation_saves_imports(tmp_path, legacy):
    config = transformers.GPT2Config(vocab_size=61, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    peer = transformers.GPT2LMHeadModel(config).eval()
    peer.save_pretrained(tmp_path)
    if legacy:  # the oldest files: no prefix, and mask buffers among the weights
        (tmp_path / "model.safetensors").unlink()
        state = {name.removeprefix("transformer."): tensor for name, tensor in peer.state_dict().items()}
        buffers = {"h.0.attn.bias": torch.ones(1, 1, 16, 16), "h.0.attn.masked_bias": torch.tensor(-1e4)}
        torch.save(state | buffers, tmp_path / "pytorch_model.bin")
    shape, weights = import_model(tmp_path)
    ids = torch.arange(32).view(2, 16)
    with torch.no_grad():
        assert (peer(ids).logits - logits_of(shape, weights, ids)).abs().max().item() < 1e-4


def test_shards_of_a_model_import_as_one(tmp_path):
    config = transformers.GPT2Config(vocab_size=61, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert len(import_model(tmp_path)[1]) == 28


def test_a_padded_vocabulary_is_stripped_both_ways(tmp_path):
    padded = ModelShape(2, 2, 8, 16, 320)
    checkpoint = make_checkpoint(padded, BYTES)
    folder = export_model(checkpoint, tmp_path / "hf")
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 257
    assert import_model(folder)[0].vocabulary_size == 257
    unstripped = export_model(make_checkpoint(padded, {}), tmp_path / "padded")
    shape, weights = import_model(unstripped, vocabulary_size=257)
    assert (shape.vocabulary_size, len(weights["wte.weight"])) == (257, 257)


TEXTS = [
    "Hello, world!",
    "  two  spaces\n\nand\tlines 1234567",
    "na\u00efve caf\u00e9 \U0001f600",
    "def f(x): return x**2",
    "",
]


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_exported_tokenizer_files_give_our_ids_offline(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ours = load_tokenizer(name)
    tokenizer = {"name": name, "vocabulary_size": ours.vocabulary_size, "end_of_text": ours.end_of_text}
    checkpoint = make_checkpoint(ModelShape(1, 1, 4, 16, ours.vocabulary_size), tokenizer)
    folder = export_model(checkpoint, tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert theirs.encode(text) == ours.encode(text).tolist()
        assert theirs.decode(theirs.encode(text)) == text
    assert theirs.eos_token_id == ours.end_of_text


def test_merges_derived_from_the_ranks_are_the_published_ones(tmp_path):
    write_tokenizer(tmp_path, "gpt2", 1024)
    published = hashlib.sha256((tmp_path / "merges.txt").read_bytes()).hexdigest()
    assert published == GPT2_FILES_SHA256["vocab.bpe"]
    assert merges_of(gpt2_ranks())[0] == (b" ", b"t")


def test_an_export_into_a_full_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StaleOutputError, match="an empty or a new folder"):
        export_model(make_checkpoint(SHAPE, BYTES), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_an_export_leaves_nothing_but_itself_and_touches_nothing_beside_it(tmp_path):
    (tmp_path / "hf.aside").mkdir()
    (tmp_path / "hf.aside" / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="no BPE"):  # after the weights were written
        export_model(make_checkpoint(SHAPE, {"name": write_no_bpe(tmp_path)}), tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf.aside", "no.bpe"]
    folder = export_model(make_checkpoint(SHAPE, BYTES), tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "hf.aside", "no.bpe"]
    assert (tmp_path / "hf.aside" / "mine.txt").read_text() == "keep"
    assert folder.stat().st_mode == (tmp_path / "hf.aside").stat().st_mode


def write_no_bpe(folder):
    """A vocabulary with a token of three bytes, none of two."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    (folder / "no.bpe").write_bytes(format_ranks(ranks))
    return str(folder / "no.bpe")


def test_a_banded_model_is_not_exported_as_a_dense_one(tmp_path):
    banded = ModelShape(2, 2, 8, 16, 257, attention_band=4)
    with pytest.raises(CheckpointError, match="attention band of 4"):
        export_model(make_checkpoint(banded, BYTES), tmp_path / "hf")


@pytest.mark.parametrize(
    ("field", "value"), [("model_type", "llama"), ("activation_function", "relu"), ("n_inner", 33)]
)
def test_another_architecture_is_refused_by_the_field_that_differs(tmp_path, field, value):
    folder = export_model(make_checkpoint(SHAPE, BYTES), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{field}: found '?{value}"):
        import_model(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_layer", None), ("n_head", "2"), ("n_embd", None), ("n_positions", 2.5), ("vocab_size", None), ("n_layer", 0)],
)
def test_a_config_without_a_size_is_refused_by_the_field(tmp_path, field, value):
    folder = export_model(make_checkpoint(SHAPE, BYTES), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps({name: config[name] for name in config if config[name] is not None}))
    with pytest.raises(CheckpointError, match=f"config.json: {field}: found {value!r}; expected a whole number"):
        import_model(folder)


def test_a_config_that_is_no_object_is_refused_by_its_file(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config\.json: found list; expected a JSON object"):
        import_model(tmp_path)


def test_weights_that_do_not_fit_the_config_are_refused_by_name(tmp_path):
    folder = export_model(make_checkpoint(SHAPE, BYTES), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text()) | {"n_layer": 3}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"h\.2\.attn\.c_attn\.bias: found no such tensor"):
        import_model(folder)


def test_a_folder_without_weights_is_refused(tmp_path):
    folder = export_model(make_checkpoint(SHAPE, BYTES), tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        import_model(folder)


def test_a_truncated_file_is_refused(tmp_path):
    folder = export_model(make_checkpoint(SHAPE, BYTES), tmp_path / "hf")
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(CheckpointError, match="readable tensors"):
        import_model(folder)
