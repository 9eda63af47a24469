"""Checkpoints: a folder each, written aside and renamed, proved by digests, without pickle.

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
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from gpt_core.errors import CheckpointError
from gpt_core.model.presets import ModelShape
from gpt_core.storage import Storage
from gpt_core.tokens.vocabulary import VOCABULARY

FORMAT = "gpt-herd checkpoint 1"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
DESCRIPTION = "checkpoint.json"
_PREFIX = "step-"
_ASIDE = "aside-"
_DAMAGED = "damaged-"
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

    path: Path
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
    run_folder: Path | str,
    description: Description,
    weights: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Tensor],
) -> Path:
    """Write a checkpoint atomically and return its folder; an older one of the same step is replaced.

    The files are written and synced in a folder beside, which is then renamed; whatever happens
    before that leaves nothing that could be taken for a checkpoint.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written; nothing is left behind.
    """
    target = path_of(run_folder, description.step)
    aside = target.with_name(f"{_ASIDE}{target.name}")
    try:
        _write_folder(aside, description, {WEIGHTS: weights, OPTIMIZER: optimizer_state})
        _replace_folder(aside, target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            str(target),
            f"{error.strerror or error}",
            "a folder with room to write",
            "free space and run it again",
        ) from error
    return target


def load(path: Path | str) -> Checkpoint:
    """Load a checkpoint folder, or the newest whole one of a run folder.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    path = Path(path)
    if (path / DESCRIPTION).exists():
        return _load_whole(path)
    newest = load_newest(path)
    if newest is None:
        raise CheckpointError(
            str(path), "no whole checkpoint", f"a folder with {DESCRIPTION}, or a run folder", "train first"
        )
    return newest


def load_newest(run_folder: Path | str, before: int | None = None) -> Checkpoint | None:
    """Return the newest whole checkpoint of a run, None if there is none; warn of each damaged one.

    Args:
        run_folder: The run.
        before: If given, only checkpoints of fewer steps are looked at.

    Raises:
        CheckpointError: One is of another format or cannot be read now, which is no damage: training on from the
            one before would throw its steps away.
    """
    for path in reversed(list_paths(run_folder)):
        if before is not None and path.name >= path_of(run_folder, before).name:
            continue
        try:
            checkpoint = _load_whole(path)
            _check_file(path, _read_json(path), OPTIMIZER)
        except DamagedCheckpointError as error:
            warnings.warn(f"passed over a damaged checkpoint: {error}", DamagedCheckpointWarning, stacklevel=2)
        else:
            return checkpoint
    return None


def path_of(run_folder: Path | str, step: int) -> Path:
    """Return where the checkpoint of a step lies, or would lie."""
    return Path(run_folder) / CHECKPOINTS / f"{_PREFIX}{step:08d}"


def list_paths(run_folder: Path | str) -> list[Path]:
    """Return the checkpoint folders of a run by rising step, whole or not."""
    return sorted((Path(run_folder) / CHECKPOINTS).glob(f"{_PREFIX}*"))


def set_aside_after(run_folder: Path | str, step: int) -> list[Path]:
    """Rename the checkpoints of later steps, which a resume has passed over, to damaged-step-...; return them.

    Left where they are they would count among the newest, and pruning would delete whole ones instead.
    """
    doomed = [path for path in list_paths(run_folder) if path.name > path_of(run_folder, step).name]
    renamed = []
    for path in doomed:
        target = path.with_name(f"{_DAMAGED}{path.name}")
        shutil.rmtree(target, ignore_errors=True)
        renamed.append(path.rename(target))
    return renamed


def read_description(path: Path | str) -> Description:
    """Return the description of a checkpoint folder, its own digest checked; tensors stay unread.

    Raises:
        CheckpointError: Absent, damaged, or of another format.
    """
    values = _read_json(Path(path))
    kept: dict[str, Any] = {name: values[name] for name in Description.__dataclass_fields__}
    kept["shape"] = ModelShape(**values["shape"])
    if VOCABULARY in values["files"]:
        kept["tokenizer"] = kept["tokenizer"] | {"name": str(Path(path).absolute() / VOCABULARY)}
    return Description(**kept)


def weights_digest(path: Path | str) -> str:
    """Return the SHA-256 of a checkpoint's weights file: what names a model, whoever trained it where."""
    return _read_json(Path(path))["files"][WEIGHTS]["sha256"]


def prune(run_folder: Path | str, keep: int, best_by: str | None = "validation_loss") -> list[Path]:
    """Delete all but the newest ``keep`` checkpoints and the one with the lowest metric.

    Returns the folders deleted.  What an earlier crash left half-written is deleted as well.
    """
    delete_leftovers(run_folder)
    paths = list_paths(run_folder)
    spared = {*paths[-keep:], *_best(paths, best_by)}
    doomed = [path for path in paths if path not in spared]
    for path in doomed:
        # Renamed first: a crash in the middle of the deletion must not leave half a checkpoint.
        aside = path.rename(path.with_name(f"{_ASIDE}{path.name}"))
        shutil.rmtree(aside)
    return doomed


def delete_leftovers(run_folder: Path | str) -> None:
    """Delete what a crash left half-written or half-deleted; only for the run's sole writer."""
    for leftover in (Path(run_folder) / CHECKPOINTS).glob(f"{_ASIDE}*"):
        shutil.rmtree(leftover)


def _best(paths: list[Path], metric: str | None) -> list[Path]:
    scores: list[tuple[float, Path]] = []
    for path in paths:
        try:
            score = read_description(path).metrics.get(metric or "")
        except CheckpointError:
            continue
        if score is not None:
            scores.append((score, path))
    return [min(scores)[1]] if scores else []


def _write_folder(folder: Path, description: Description, files: Mapping[str, Mapping[str, Tensor]]) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    digests: dict[str, dict[str, Any]] = {}
    for name, tensors in files.items():
        with (folder / name).open("wb") as file:
            digests[name] = write_tensors(file, tensors)
            _sync(file)
    if "/" in (vocabulary := description.tokenizer.get("name", "")):  # a file, not a published name
        digests[VOCABULARY] = _copy_file(vocabulary, folder / VOCABULARY)
        description = replace(description, tokenizer=description.tokenizer | {"name": VOCABULARY})
    values = {"format": FORMAT, **asdict(description), "files": digests}
    values["digest"] = _digest_of(values)
    with (folder / DESCRIPTION).open("wb") as file:
        file.write(json.dumps(values, indent=1, sort_keys=True).encode())
        _sync(file)
    _sync_folder(folder)


def _copy_file(place: str, target: Path) -> dict[str, Any]:
    """Copy a small file, local or at a URL, durably; return {num_bytes, sha256}."""
    with Storage.of(place).open_read(place) as source, target.open("wb") as file:
        data = source.read()
        file.write(data)
        _sync(file)
    return {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _replace_folder(aside: Path, target: Path) -> None:
    if target.exists():
        # A damaged one of the same step: a folder cannot be renamed over one that is not empty.
        shutil.rmtree(target)
    aside.rename(target)
    _sync_folder(target.parent)


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


def _load_whole(path: Path) -> Checkpoint:
    description = _read_json(path)
    if VOCABULARY in description["files"]:
        _check_file(path, description, VOCABULARY)
    return Checkpoint(path, read_description(path), _load_tensors(path, WEIGHTS))


def _load_tensors(path: Path, name: str) -> dict[str, Tensor]:
    _check_file(path, _read_json(path), name)
    with _reading(path / name):
        return load_file(path / name)


def _check_file(path: Path, description: dict[str, Any], name: str) -> None:
    expected = description["files"][name]
    with _reading(path / name), (path / name).open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes != expected["num_bytes"]:
            raise DamagedCheckpointError(str(path / name), f"{num_bytes} bytes", f"{expected['num_bytes']}", _REMEDY)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected["sha256"]:
        raise DamagedCheckpointError(str(path / name), f"SHA-256 {digest}", expected["sha256"], _REMEDY)


def _read_json(path: Path) -> dict[str, Any]:
    file = path / DESCRIPTION
    with _reading(file):
        data = file.read_bytes()
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
def _reading(file: Path) -> Iterator[None]:
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


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
