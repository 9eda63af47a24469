"""Checkpoints: a folder each, on a disk or in a store, proved by digests, without pickle.

    RUN/checkpoints/step-00000100/weights.safetensors     fp32, under the model's parameter names
                                  optimizer.safetensors   first_moment/NAME and second_moment/NAME
                                  vocabulary.tiktoken     the tokenizer's ranks, where it is no published one
                                  checkpoint.json         what is needed to go on, and the digests

``checkpoint.json`` holds the SHA-256 of both files and of itself, so that a truncated, half-written
or bit-flipped checkpoint is found when it is read.  Weights load without the optimizer file.
Written by one rank of the training loop; read by resumes, evaluation, generation and export.
"""

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from gpt_core.errors import CheckpointError
from gpt_core.model.presets import ModelShape
from gpt_core.storage import Location, Storage, Url, location
from gpt_core.tokens.vocabulary import PUBLISHED, VOCABULARY
from gpt_core.training import checkpoint_folder as folders
from gpt_core.training.checkpoint_folder import DESCRIPTION, put_file

FORMAT = "gpt-herd checkpoint 1"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
_REMEDY = "restore it from a copy, or delete the folder so that the one before it is used"
_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is not whole, nor will be when it is read again."""


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint was passed over because it is not whole."""


@dataclass(frozen=True, slots=True)
class Description:
    """Everything of a checkpoint but its tensors; plain JSON values."""

    step: int
    tokens: int
    shape: ModelShape
    recipe: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    corpus_digest: str | None = None
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """name, digest, vocabulary_size and end_of_text of the corpus's tokenizer."""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint: its folder, its description, its fp32 weights by name."""

    path: Location
    description: Description
    weights: dict[str, Tensor]

    @property
    def step(self) -> int:
        """Optimizer steps behind the weights."""
        return self.description.step

    @property
    def shape(self) -> ModelShape:
        """The model's sizes."""
        return self.description.shape

    @property
    def tokenizer(self) -> dict[str, Any]:
        """What is known of the tokenizer the model was trained with."""
        return self.description.tokenizer

    def load_optimizer(self) -> dict[str, Tensor]:
        """Return the moments, checked against their digest.

        Raises:
            CheckpointError: The optimizer file is absent or damaged.
        """
        return _load_tensors(self.path, OPTIMIZER)


def write(
    run_folder: Location | str,
    description: Description,
    weights: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Tensor],
) -> Location:
    """Write a checkpoint atomically and return its folder; an older one of the same step is replaced.

    Whatever happens on the way leaves nothing that could be taken for a checkpoint.

    Raises:
        CheckpointError: The disk is full, or the folder or store cannot be written; no checkpoint is left behind.
    """
    target = path_of(run_folder, description.step)
    files = {WEIGHTS: weights, OPTIMIZER: optimizer_state}
    try:
        folders.write_folder(target, lambda folder: _put_files(folder, description, files))
    except OSError as error:
        raise CheckpointError(
            str(target),
            f"{error.strerror or error}",
            "a place with room to write",
            "free space, or mend what it says, and run it again",
        ) from error
    return target


def load(path: Location | str) -> Checkpoint:
    """Load a checkpoint folder, or the newest whole one of a run folder.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    path = location(path)
    with _reading(path / DESCRIPTION):
        is_one = Storage.of(path).exists(str(path / DESCRIPTION))
    if is_one:
        return _load_whole(path)
    newest = load_newest(path)
    if newest is None:
        raise CheckpointError(
            str(path), "no whole checkpoint", f"a folder with {DESCRIPTION}, or a run folder", "train first"
        )
    return newest


def load_newest(run_folder: Location | str, before: int | None = None) -> Checkpoint | None:
    """Return the newest whole checkpoint of a run, None if there is none; warn of each damaged one.

    Args:
        run_folder: The run.
        before: If given, only checkpoints of fewer steps are looked at.

    Raises:
        CheckpointError: One is of another format or cannot be read now, which is no damage: training on from the
            one before would throw its steps away.
    """
    for path in reversed(list_paths(run_folder)):
        if before is not None and folders.step_of(path) >= before:
            continue
        try:
            checkpoint = _load_whole(path)
            with _checked_file(path, _read_json(path), OPTIMIZER):
                pass
        except DamagedCheckpointError as error:
            warnings.warn(f"passed over a damaged checkpoint: {error}", DamagedCheckpointWarning, stacklevel=2)
        else:
            return checkpoint
    return None


def path_of(run_folder: Location | str, step: int) -> Location:
    """Return where the checkpoint of a step lies, or would lie."""
    return location(run_folder) / CHECKPOINTS / f"{folders.PREFIX}{step:08d}"


def list_paths(run_folder: Location | str) -> list[Location]:
    """Return the checkpoint folders of a run by rising step, whole or not."""
    return folders.list_folders(location(run_folder) / CHECKPOINTS)


def set_aside_after(run_folder: Location | str, step: int) -> list[Location]:
    """Rename the checkpoints of later steps, which a resume has passed over, to damaged-step-...; return them.

    Left where they are they would count among the newest, and pruning would delete whole ones instead.
    """
    doomed = [path for path in list_paths(run_folder) if folders.step_of(path) > step]
    return [folders.set_folder_aside(path) for path in doomed]


def read_description(path: Location | str) -> Description:
    """Return the description of a checkpoint folder, its own digest checked; tensors stay unread.

    Raises:
        CheckpointError: Absent, damaged, or of another format.
    """
    path = location(path)
    values = _read_json(path)
    kept: dict[str, Any] = {name: values[name] for name in Description.__dataclass_fields__}
    kept["shape"] = ModelShape(**values["shape"])
    if VOCABULARY in values["files"]:
        kept["tokenizer"] = kept["tokenizer"] | {"name": str(_absolute(path) / VOCABULARY)}
    return Description(**kept)


def _absolute(path: Location) -> Location:
    return path if isinstance(path, Url) else path.absolute()


def weights_digest(path: Location | str) -> str:
    """Return the SHA-256 of a checkpoint's weights file: what names a model, whoever trained it where."""
    return _read_json(location(path))["files"][WEIGHTS]["sha256"]


def path_of_digest(digest: str, beside: Location) -> str:
    """Return where in a run, of which one checkpoint is given, that of a weights digest lies; the digest if nowhere."""
    for path in folders.list_folders(beside.parent):
        with suppress(CheckpointError):
            if weights_digest(path) == digest:
                return str(path)
    return digest


def prune(run_folder: Location | str, keep: int, best_by: str | None = "validation_loss") -> list[Location]:
    """Delete all but the newest ``keep`` checkpoints and the one with the lowest metric.

    Returns the folders deleted.  What an earlier crash left half-written is deleted as well.
    """
    delete_leftovers(run_folder)
    paths = list_paths(run_folder)
    spared = {*paths[-keep:], *_best(paths, best_by)}
    doomed = [path for path in paths if path not in spared]
    for path in doomed:
        folders.delete_folder(path)
    return doomed


def delete_leftovers(run_folder: Location | str) -> None:
    """Delete what a crash left half-written or half-deleted; only for the run's sole writer."""
    folders.delete_leftovers(location(run_folder) / CHECKPOINTS)


def _best(paths: list[Location], metric: str | None) -> list[Location]:
    scores: dict[Location, float] = {}
    for path in paths:
        try:
            score = read_description(path).metrics.get(metric or "")
        except CheckpointError:
            continue
        if score is not None:
            scores[path] = score
    return [min(scores, key=scores.__getitem__)] if scores else []


def _put_files(folder: Location, description: Description, files: Mapping[str, Mapping[str, Tensor]]) -> None:
    digests: dict[str, dict[str, Any]] = {}
    for name, tensors in files.items():
        digests[name] = put_file(folder / name, lambda file, tensors=tensors: write_tensors(file, tensors))
    vocabulary = description.tokenizer.get("name", "")
    if vocabulary and vocabulary not in PUBLISHED:
        with Storage.of(vocabulary).open_read(vocabulary) as source:
            data = source.read()
        put_file(folder / VOCABULARY, lambda file: file.write(data))
        digests[VOCABULARY] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        description = replace(description, tokenizer=description.tokenizer | {"name": VOCABULARY})
    values = {"format": FORMAT, **asdict(description), "files": digests}
    values["digest"] = _digest_of(values)
    text = json.dumps(values, indent=1, sort_keys=True)
    put_file(folder / DESCRIPTION, lambda file: file.write(text.encode()))


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write tensors in the safetensors format, without copying CPU tensors; return {num_bytes, sha256}.

    The format (8 bytes of header length, a JSON header, the data) is written here, so that the digest
    is taken on the way and views of one flat buffer need no clones.
    """
    header: dict[str, Any] = {}
    end_bytes = 0
    for name, tensor in tensors.items():
        start_bytes, end_bytes = end_bytes, end_bytes + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start_bytes, end_bytes],
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    sha256 = hashlib.sha256()
    num_bytes = 0
    pieces = [len(head).to_bytes(8, "little"), head, *map(_bytes_of, tensors.values())]
    for piece in pieces:
        file.write(piece)
        sha256.update(piece)
        num_bytes += len(piece)
    return {"num_bytes": num_bytes, "sha256": sha256.hexdigest()}


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def _load_whole(path: Location) -> Checkpoint:
    values = _read_json(path)
    if VOCABULARY in values["files"]:
        with _checked_file(path, values, VOCABULARY):
            pass
    return Checkpoint(path, read_description(path), _load_tensors(path, WEIGHTS))


def _load_tensors(path: Location, name: str) -> dict[str, Tensor]:
    with _checked_file(path, _read_json(path), name) as file:
        return load_file(file)


@contextmanager
def _checked_file(path: Location, values: dict[str, Any], name: str) -> Iterator[Path]:
    """Yield a file of a checkpoint, or where that lies in a store a copy, once its digest is found right."""
    file, expected = path / name, values["files"][name]
    with _reading(file), Storage.of(file).on_disk(str(file)) as there:
        with there.open("rb") as opened:
            num_bytes = os.fstat(opened.fileno()).st_size
            if num_bytes != expected["num_bytes"]:
                raise DamagedCheckpointError(str(file), f"{num_bytes} bytes", f"{expected['num_bytes']}", _REMEDY)
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != expected["sha256"]:
            raise DamagedCheckpointError(str(file), f"SHA-256 {digest}", expected["sha256"], _REMEDY)
        yield there


def _read_json(path: Location) -> dict[str, Any]:
    file = path / DESCRIPTION
    with _reading(file), Storage.of(file).open_read(str(file)) as opened:
        data = opened.read()
    try:
        values = json.loads(data)
    except ValueError as error:
        found = type(error).__name__
        raise DamagedCheckpointError(str(file), found, "the JSON of a checkpoint", _REMEDY) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(str(file), "another format", FORMAT, "use the release that wrote it")
    if values.get("digest") != _digest_of(values):
        raise DamagedCheckpointError(str(file), "values that do not match their digest", "an unchanged file", _REMEDY)
    return values


@contextmanager
def _reading(file: Location) -> Iterator[None]:
    """Tell a file that is absent, or on a failing disk, from one that cannot be read now."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedCheckpointError(str(file.parent), f"no {file.name}", "a whole checkpoint", _REMEDY) from error
    except OSError as error:
        found = error.strerror or str(error)
        if error.errno == errno.EIO:
            raise DamagedCheckpointError(str(file), found, "a disk that can read it", _REMEDY) from error
        raise CheckpointError(str(file), found, "a file that can be read", "mend that and run it again") from error


def _digest_of(values: dict[str, Any]) -> str:
    kept = {name: value for name, value in values.items() if name != "digest"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
