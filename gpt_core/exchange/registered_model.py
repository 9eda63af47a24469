"""A trained model as a folder for others: the Hugging Face layout, and beside it what that layout cannot say.

    config.json model.safetensors vocab.json merges.txt tokenizer_config.json    as `herd export` writes them
    herd.json                the tokenizer's name, the step, and the digests that lead back to run and corpus
    vocabulary.tiktoken      the tokenizer's ranks, where it is no published one

A model registry stores this folder; MLflow loads it through ``_load_pyfunc``: code and plain data, no pickle.
"""

import json
import shutil
import threading
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import safe_open

from gpt_core.errors import CheckpointError, UserError
from gpt_core.exchange.huggingface import export_model, import_model
from gpt_core.generation.request import GenerationRequest, Sampling, sampling_with
from gpt_core.storage import Location, Storage
from gpt_core.tokens.vocabulary import PUBLISHED, VOCABULARY
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Checkpoint, Description

FACTS = "herd.json"
_SLOTS = 8


def package(source: Checkpoint, folder: Path) -> Path:
    """Write a checkpoint as such a folder and return it.

    Raises:
        StaleOutputError: The folder exists and is not empty.
        CheckpointError: The layout cannot hold the model.
    """
    export_model(source, folder)
    tokenizer = dict(source.tokenizer)
    if tokenizer["name"] not in PUBLISHED:
        with Storage.of(tokenizer["name"]).on_disk(tokenizer["name"]) as vocabulary:
            shutil.copyfile(vocabulary, folder / VOCABULARY)
        tokenizer["name"] = VOCABULARY
    told = source.description
    facts = {
        "step": told.step,
        "tokens": told.tokens,
        "tokenizer": tokenizer,
        "order": _order_of(source.path / checkpoint.WEIGHTS),
        "weights_digest": checkpoint.weights_digest(source.path),
        "corpus_digest": told.corpus_digest,
        "metrics": told.metrics,
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return folder


def unpack(folder: Path, run_folder: Path) -> Location:
    """Write the folder's model as the one checkpoint of a run folder, atomically, and return the checkpoint.

    Its weights file is the one that was packaged, to the bit, unless that one had a padded vocabulary.

    Raises:
        CheckpointError: Something is missing, damaged, or not of this format.
    """
    facts = _read_facts(folder)
    shape, weights = import_model(folder)
    if sorted(facts["order"]) != sorted(weights):
        raise CheckpointError(str(folder / FACTS), "other tensors", "those of the weights file", "register it again")
    ordered = {name: weights[name] for name in facts["order"]}
    description = Description(
        step=facts["step"],
        tokens=facts["tokens"],
        shape=shape,
        corpus_digest=facts["corpus_digest"],
        tokenizer=facts["tokenizer"] | {"name": _tokenizer_place(folder, facts)},
        metrics=facts["metrics"],
    )
    return checkpoint.write(run_folder, description, ordered, {})


class PromptModel:
    """What MLflow calls: prompts in, completions out, computed by the engine in this process.

    Args:
        folder: As ``package`` wrote it.
    """

    def __init__(self, folder: Path) -> None:
        from gpt_core.generation.engine import Engine, EngineOptions
        from gpt_core.tokens.tokenizer import load_tokenizer

        shape, weights = import_model(folder)
        tokenizer = load_tokenizer(_tokenizer_place(folder, _read_facts(folder)))
        self._engine = Engine(weights, shape, tokenizer, EngineOptions(slots=_SLOTS))
        self._encode = tokenizer.encode_prompt
        self._calls = count()
        self._one_at_a_time = threading.Lock()  # MLflow's server calls from several threads

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Return a completion for each prompt.

        Args:
            model_input: A list of strings, or a data frame whose one column they are.
            params: Fields of ``Sampling``; a completion depends on them and on its prompt's place in the list.
        """
        sampling = sampling_with(Sampling(), params or {})
        call = next(self._calls)  # ids are unique in an engine; the draws are keyed by the place alone
        requests = [
            GenerationRequest(f"{call}-{place}", tuple(self._encode(prompt).tolist()), sampling, key=str(place))
            for place, prompt in enumerate(_prompts_of(model_input))
        ]
        with self._one_at_a_time:
            done = self._engine.run(requests)
        if refused := [completion.error for completion in done if completion.error]:
            raise UserError("prompt", refused[0], "one the model can complete", f"mend {len(refused)} of {len(done)}")
        return [completion.text for completion in done]


def _load_pyfunc(data_path: str) -> PromptModel:
    """Return the model; called by ``mlflow.pyfunc.load_model``."""
    return PromptModel(Path(data_path))


def _prompts_of(model_input: Any) -> Iterable[str]:
    column = model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input
    return [str(prompt) for prompt in column]


def _order_of(file: Location) -> list[str]:
    """Return the names of a file's tensors as they follow one another, on which its digest depends."""
    with Storage.of(file).on_disk(str(file)) as there, safe_open(there, framework="pt") as tensors:
        return tensors.offset_keys()


def _read_facts(folder: Path) -> dict[str, Any]:
    file = folder / FACTS
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"{type(error).__name__}"
        raise CheckpointError(str(file), found, "a model of gpt-herd", "register it with herd pretrain") from error
    return facts


def _tokenizer_place(folder: Path, facts: dict[str, Any]) -> str:
    """Return the tokenizer's name, or its file in the folder: what the file says leads nowhere else."""
    name = facts["tokenizer"]["name"]
    if name in PUBLISHED:
        return name
    if name != VOCABULARY:
        raise CheckpointError(str(folder / FACTS), f"tokenizer {name!r}", f"{VOCABULARY}", "register it again")
    return str(folder / VOCABULARY)
