"""A checkpoint of a small model, over bytes or another vocabulary, whose next token depends visibly on those before."""

from pathlib import Path

from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Description


def write_tiny_checkpoint(folder: Path, *, seed: int = 0, num_positions: int = 128, vocabulary: str = "bytes") -> Path:
    """Write the checkpoint into a run folder and return the folder."""
    tokenizer = load_tokenizer(vocabulary)
    shape = ModelShape(2, 2, 32, num_positions=num_positions, vocabulary_size=tokenizer.vocabulary_size)
    # Wider weights than training begins with.
    weights = {name: tensor.detach() * 4 for name, tensor in GPT(shape).initialise(seed).named_parameters()}
    described = {"name": vocabulary, "digest": tokenizer.digest, "vocabulary_size": tokenizer.vocabulary_size}
    checkpoint.write(folder, Description(step=1, tokens=1, shape=shape, tokenizer=described), weights, {})
    return folder
