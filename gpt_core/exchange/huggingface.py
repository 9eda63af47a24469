"""To and from the Hugging Face layout of GPT-2: weights, configuration and tokenizer files.

That layout stores the four linear layers of a block as Conv1D, that is [in, out], where ours are
[out, in]; it carries mask buffers that are no weights; and published vocabularies are sometimes
padded.  Nothing is unpickled: legacy .bin files are read with ``weights_only``.
"""

import json
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt_core.errors import CheckpointError, StaleOutputError
from gpt_core.model.gpt import GPT, LAYER_NORM_EPSILON
from gpt_core.model.presets import ModelShape
from gpt_core.storage import Location
from gpt_core.tokens.music import WORDS
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.tokens.vocabulary import END_OF_TEXT, byte_characters, gpt2_ranks, read_vocabulary
from gpt_core.training.checkpoint import Checkpoint, Description, list_paths, write

_CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_BUFFERS = (".attn.bias", ".attn.masked_bias")
_PREFIX = "transformer."
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# What would make it another architecture: field, the values that are GPT-2's.
_REQUIRED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (LAYER_NORM_EPSILON,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True,),
    "add_cross_attention": (False,),
}
_SIZES = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")


def import_model(folder: Path | str, vocabulary_size: int | None = None) -> tuple[ModelShape, dict[str, Tensor]]:
    """Read a model in the Hugging Face layout; return its shape and our fp32 weights by name.

    Args:
        folder: Holds config.json and model.safetensors, pytorch_model.bin, or shards of either.
        vocabulary_size: Rows of the token embedding that are kept, where it is padded; None keeps all.

    Raises:
        CheckpointError: A file is missing or not readable, it is another architecture, or a tensor is
            missing, left over, or of another size than config.json implies.
    """
    folder = Path(folder)
    shape = _shape_of(folder, vocabulary_size)
    weights: dict[str, Tensor] = {}
    for name, tensor in _read_tensors(folder).items():
        ours = name.removeprefix(_PREFIX)
        if ours == "lm_head.weight" or ours.endswith(_BUFFERS):
            continue
        turned = tensor.t() if ours.endswith(_CONV1D) else tensor
        kept = turned[: shape.vocabulary_size] if ours == "wte.weight" else turned
        weights[ours] = kept.to(torch.float32).contiguous()
    _check_weights(folder, shape, weights)
    return shape, weights


def export_model(checkpoint: Checkpoint, folder: Path | str) -> Path:
    """Write a checkpoint in the Hugging Face layout, tokenizer files included, and return the folder.

    The folder appears whole or not at all.  Rows of a padded vocabulary, which no token of the
    checkpoint's tokenizer uses, are left out.

    Raises:
        StaleOutputError: The folder exists and is not empty.
        CheckpointError: The model has a banded attention, which that layout cannot say.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise StaleOutputError(str(folder), "files", "an empty or a new folder", "choose another folder")
    if checkpoint.shape.attention_band is not None:
        band = f"an attention band of {checkpoint.shape.attention_band}"
        raise CheckpointError(str(checkpoint.path), band, "dense attention", "it cannot be exported")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        aside = Path(beside) / folder.name
        aside.mkdir()
        _put_files(aside, checkpoint)
        if folder.exists():
            folder.rmdir()
        return aside.rename(folder)


def import_run(folder: Path | str, run_folder: Location | str, tokenizer_name: str = "gpt2") -> Location:
    """Write a model in the Hugging Face layout as the one checkpoint, of step 0, of a new run; return its folder.

    Rows of a vocabulary padded above the tokenizer's are left out. There is no optimizer state: the checkpoint is
    to evaluate, complete and serve, not to resume. Written atomically.

    Raises:
        StaleOutputError: The run folder has checkpoints.
        CheckpointError: See ``import_model``; or the vocabulary is smaller than the tokenizer's.
        SettingsError: There is no such tokenizer.
    """
    if list_paths(run_folder):
        raise StaleOutputError(str(run_folder), "checkpoints of a run", "a new folder", "choose another folder")
    tokenizer = load_tokenizer(tokenizer_name)
    found = _shape_of(Path(folder), None).vocabulary_size
    if found < tokenizer.vocabulary_size:
        raise CheckpointError(
            f"{Path(folder) / 'config.json'}: vocab_size",
            f"{found}",
            f"at least {tokenizer.vocabulary_size}, that of tokenizer {tokenizer_name!r}",
            "name the model's own tokenizer",
        )
    shape, weights = import_model(folder, tokenizer.vocabulary_size)
    described = {
        "name": tokenizer.name,
        "digest": tokenizer.digest,
        "vocabulary_size": tokenizer.vocabulary_size,
        "end_of_text": tokenizer.end_of_text,
    }
    description = Description(step=0, tokens=0, shape=shape, tokenizer=described)
    return write(run_folder, description, weights, {})


def _put_files(folder: Path, checkpoint: Checkpoint) -> None:
    num_rows = checkpoint.tokenizer.get("vocabulary_size", checkpoint.shape.vocabulary_size)
    save_file(exported_weights(checkpoint.weights, num_rows), folder / _SINGLE_FILES[0], metadata={"format": "pt"})
    end_of_text = checkpoint.tokenizer.get("end_of_text")
    _write_json(folder / "config.json", _config_of(checkpoint.shape, num_rows, end_of_text))
    if checkpoint.tokenizer:
        write_tokenizer(folder, checkpoint.tokenizer["name"], checkpoint.shape.num_positions)


def exported_weights(weights: Mapping[str, Tensor], vocabulary_size: int) -> dict[str, Tensor]:
    """Return our weights under the names and in the orientation of the Hugging Face layout."""
    exported: dict[str, Tensor] = {}
    for name, weight in weights.items():
        turned = weight.t() if name.endswith(_CONV1D) else weight
        kept = turned[:vocabulary_size] if name == "wte.weight" else turned
        exported[_PREFIX + name] = kept.contiguous()
    return exported


def write_tokenizer(folder: Path, name: str, num_positions: int) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json of a tokenizer, by its name as in settings."""
    specials: tuple[str, ...] = ()
    if name == "music":
        _write_words(folder, num_positions)
        return
    if name == "bytes":
        ranks = {bytes([byte]): byte for byte in range(256)}
    elif name == "gpt2":
        ranks = gpt2_ranks()
    else:
        ranks, specials = read_vocabulary(name)
    characters = byte_characters()
    spelled = {token: "".join(characters[byte] for byte in token) for token in ranks}
    ids = {spelled[token]: rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])}
    added = {special: number for number, special in enumerate((END_OF_TEXT, *specials), start=len(ranks))}
    _write_json(folder / "vocab.json", ids | added)
    lines = [f"{spelled[left]} {spelled[right]}" for left, right in merges_of(ranks)]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    special: dict[str, Any] = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    if specials:
        special["additional_special_tokens"] = list(specials)
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": num_positions, "add_prefix_space": False}
    _write_json(folder / "tokenizer_config.json", config | special)


def _write_words(folder: Path, num_positions: int) -> None:
    """Write the music vocabulary, whose tokens are words between spaces."""
    ids = {word: number for number, word in enumerate((*WORDS, END_OF_TEXT))}
    model = {"type": "WordLevel", "vocab": ids, "unk_token": END_OF_TEXT}
    end = {"id": ids[END_OF_TEXT], "content": END_OF_TEXT, "special": True}
    end |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    whole = {"version": "1.0", "added_tokens": [end], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
    _write_json(folder / "tokenizer.json", whole)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": num_positions}
    _write_json(folder / "tokenizer_config.json", config | special)


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return the two parts each token of two and more bytes was merged from, in order of rank.

    They are what byte-pair encoding makes of the token when only lower ranks may merge.
    """
    tokens = sorted((token for token in ranks if len(token) > 1), key=lambda token: ranks[token])
    return [_parts_of(token, ranks) for token in tokens]


def _parts_of(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    parts = [bytes([byte]) for byte in token]
    none = ranks[token]
    while len(parts) > 2:
        pair_ranks = [ranks.get(left + right, none) for left, right in pairwise(parts)]
        lowest = min(pair_ranks)
        if lowest >= none:
            break
        at = pair_ranks.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    if len(parts) != 2:
        raise CheckpointError(
            f"token {token!r}", f"{len(parts)} parts", "two lower tokens", "its ranks file is no BPE's"
        )
    return parts[0], parts[1]


def _shape_of(folder: Path, vocabulary_size: int | None) -> ModelShape:
    config = _read_json(folder / "config.json")
    for name, accepted in _REQUIRED.items():
        if (value := config.get(name, accepted[0])) not in accepted:
            raise CheckpointError(
                f"{folder / 'config.json'}: {name}", repr(value), f"{accepted[0]!r}", "only GPT-2 models import"
            )
    for name in _SIZES:
        if not isinstance(value := config.get(name), int) or value < 1:
            where, expected = f"{folder / 'config.json'}: {name}", "a whole number > 0"
            raise CheckpointError(where, repr(value), expected, "give the config.json of a GPT-2 model")
    inner = config.get("n_inner")
    if inner not in (None, 4 * config["n_embd"]):
        raise CheckpointError(f"{folder / 'config.json'}: n_inner", str(inner), "4 n_embd", "it cannot import")
    return ModelShape(
        n_layer=config["n_layer"],
        n_head=config["n_head"],
        n_embd=config["n_embd"],
        num_positions=config["n_positions"],
        vocabulary_size=vocabulary_size or config["vocab_size"],
    )


def _config_of(shape: ModelShape, vocabulary_size: int, end_of_text: int | None) -> dict[str, Any]:
    dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), shape.dropout)
    return {
        **{name: values[0] for name, values in _REQUIRED.items()},
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_embd": shape.n_embd,
        "n_positions": shape.num_positions,
        "vocab_size": vocabulary_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
        **dropouts,
    }


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    for name in _SINGLE_FILES:
        if (folder / name).exists():
            return _read_file(folder / name)
    for name in _INDEXES:
        if (folder / name).exists():
            files = sorted(set(_read_json(folder / name)["weight_map"].values()))
            return {key: value for file in files for key, value in _read_file(folder / file).items()}
    raise CheckpointError(
        str(folder), "no weights", f"{' or '.join(_SINGLE_FILES)}, or an index of shards", "check the path"
    )


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            str(path), f"{type(error).__name__}: {error}", "readable tensors", "fetch it again"
        ) from error


def _check_weights(folder: Path, shape: ModelShape, weights: Mapping[str, Tensor]) -> None:
    expected = {name: tuple(p.shape) for name, p in GPT(shape, device="meta").named_parameters()}
    for name in sorted(expected.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else None
        if found != expected.get(name):
            raise CheckpointError(
                f"{folder}: {name}",
                f"size {found}" if found else "no such tensor",
                f"size {expected[name]}" if name in expected else "no such tensor",
                "weights and config.json do not belong together",
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "no JSON text"
        raise CheckpointError(str(path), found, "a JSON file", "check the path") from error
    if not isinstance(values, dict):
        raise CheckpointError(str(path), type(values).__name__, "a JSON object", "check the path")
    return values


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
