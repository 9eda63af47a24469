"""What a submitted job takes along: the project's code, its settings, small prompt files and the user's vocabulary.

One zip, the same bytes for the same content, unpacked by Ray on every node that works for the
job. Whether git ignores a file makes no difference. Corpora, checkpoints and outputs do not
travel: they are on storage that every node reads.
"""

import glob
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_core.errors import ResourceError
from gpt_core.settings import JobSettings

SETTINGS_FILE = "settings.json"
_PACKAGES = ("jobs", "cluster", "gpt_core")
_INPUTS_FOLDER = "inputs"
_MAX_PACKAGE_BYTES = 1_000_000
_MAX_INPUT_BYTES = 500_000  # zipped; a vocabulary of 50,000 ids has 370,000
_MAX_READ_BYTES = 5_000_000  # longer ones are not even tried
# Settings that name small files a job's driver reads.
_SMALL_INPUTS = ("prompts", "examples")
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(slots=True)
class JobPackage:
    """The content of one job's package.

    Attributes:
        files: Local file of each path in the package.
        settings: The job's settings, as the job on the cluster reads them.
        left: Small inputs that stay where they are, each with the reason.
        input_bytes: Of the inputs packed so far, zipped.
    """

    files: dict[str, Path]
    settings: dict[str, Any]
    left: list[str] = field(default_factory=list)
    input_bytes: int = 0

    def zipped(self) -> bytes:
        """Return the package as a zip.

        Raises:
            ResourceError: If it is above 1 MB, which no job of this project is.
        """
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            settings = json.dumps(self.settings, indent=2, ensure_ascii=False)
            packed.writestr(_entry(SETTINGS_FILE), settings)
            for name in sorted(self.files):
                packed.writestr(_entry(name), self.files[name].read_bytes())
        content = buffer.getvalue()
        if len(content) > _MAX_PACKAGE_BYTES:
            largest = max(self.files, key=lambda name: self.files[name].stat().st_size)
            raise ResourceError(
                "submit",
                f"a package of {len(content):,} bytes, the largest file {self.files[largest]}",
                f"at most {_MAX_PACKAGE_BYTES:,}",
                "move files that are no code out of jobs, cluster and gpt_core",
            )
        return content


def package_of(settings: JobSettings, working_folder: Path, waits_for: dict[str, int] | None = None) -> JobPackage:
    """Return what a job takes along.

    Prompt files and vocabularies inside the working folder are packed when they are small, and the job reads
    those copies; all other places stay the absolute paths and URLs they are. The settings lose
    the cluster's address, since on the cluster Ray says it, and gain the nodes the job waits for.
    """
    plain = settings.model_dump(mode="json")
    plain["cluster"] |= {"address": None, "num_cpus": None} | (waits_for or {})
    package = JobPackage(dict(_code()), plain)
    for section in _sections(plain):
        for name in _SMALL_INPUTS:
            if isinstance(section.get(name), list):
                section[name] = [_taken(place, working_folder, package) for place in section[name]]
        tokenizer = section.get("tokenizer")
        if isinstance(tokenizer, dict) and (working_folder / tokenizer["name"]).is_file():
            # The workers read the copy that the job writes into its corpus.
            tokenizer["name"] = _taken(str(working_folder / tokenizer["name"]), working_folder, package)
    return package


def _code() -> Iterator[tuple[str, Path]]:
    root = Path(__file__).resolve().parents[2]
    for name in _PACKAGES:
        for file in (root / name).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith("."):
                yield file.relative_to(root).as_posix(), file


def _sections(plain: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plain
    for value in plain.values():
        if isinstance(value, dict):
            yield from _sections(value)


def _taken(place: str, working_folder: Path, package: JobPackage) -> str:
    """Return the place a job reads a small input from, its files added to the package where they fit."""
    if "://" in place or not Path(place).is_relative_to(working_folder):
        return place
    inside = Path(place).relative_to(working_folder).as_posix()
    found = {f"{_INPUTS_FOLDER}/{file.relative_to(working_folder).as_posix()}": file for file in _files(place)}
    new = {name: file for name, file in found.items() if name not in package.files}
    size_bytes = sum(file.stat().st_size for file in new.values())
    zipped_bytes = _MAX_READ_BYTES if size_bytes > _MAX_READ_BYTES else sum(map(_zipped_bytes, new.values()))
    if not found or package.input_bytes + zipped_bytes > _MAX_INPUT_BYTES:
        package.left.append(f"{place} ({size_bytes:,} bytes)")
        return place
    package.files |= new
    package.input_bytes += zipped_bytes
    return f"{_INPUTS_FOLDER}/{inside}"


def _files(place: str) -> Iterator[Path]:
    for match in map(Path, glob.glob(place, recursive=True)):  # noqa: PTH207 - an absolute pattern
        yield from (file for file in match.rglob("*") if file.is_file()) if match.is_dir() else [match]


def _zipped_bytes(file: Path) -> int:
    return len(zlib.compress(file.read_bytes()))


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _ZIP_EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry
