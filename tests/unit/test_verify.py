"""Verify: every flipped bit is found and named, and a clean corpus is clean."""

import random
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from gpt_core.corpus.verify import Damage, verify
from gpt_core.errors import CorpusError
from tests.unit import tiny_corpus
from tests.unit.tiny_corpus import TinyCorpus


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return tiny_corpus.build(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def folder(clean: TinyCorpus, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean.folder, tmp_path / "corpus"))


def flip(path: Path, bit: int) -> None:
    with path.open("rb+") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def test_a_clean_corpus_has_no_damage(clean: TinyCorpus) -> None:
    assert verify(str(clean.folder)) == []
    assert verify(str(clean.folder), num_threads=4) == []


def test_each_of_a_thousand_flipped_bits_is_found_in_its_file(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".arrow", ".json", ".jsonl"}
    draw = random.Random(11)
    for number in range(1000):
        path = files[number % len(files)]
        bit = draw.randrange(8 * path.stat().st_size)
        flip(path, bit)
        assert [str(path.relative_to(folder))] == sorted({found.file for found in verify(str(folder))}), bit
        flip(path, bit)
    assert verify(str(folder)) == []


def test_a_flipped_token_names_batch_and_document(clean: TinyCorpus, folder: Path) -> None:
    path = folder / "train" / "00000001.arrow"
    whole = path.read_bytes()
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        lengths = batches[2].column(0).value_lengths().to_pylist()
        row = lengths.index(max(lengths))
        sought = batches[2].column(0)[row].values.to_numpy().tobytes()
    document = batches[0].num_rows + batches[1].num_rows + row
    flip(path, 8 * whole.index(sought) + 3)
    assert verify(str(folder)) == [Damage("train/00000001.arrow", 2, document, "tokens do not match their checksum")]
    assert str(verify(str(folder))[0]).startswith(f"train/00000001.arrow, batch 2, document {document}: tokens")


def test_a_flip_in_the_source_column_names_its_batch(folder: Path) -> None:
    path = folder / "train" / "00000001.arrow"
    flip(path, 8 * path.read_bytes().index(b"part-1.txt"))
    assert [(found.batch, found.document) for found in verify(str(folder))] == [(0, None)]


def test_a_flip_in_the_footer_is_called_one(folder: Path) -> None:
    path = folder / "validation" / "00000002.arrow"
    flip(path, 8 * (path.stat().st_size - 12))
    found = verify(str(folder))
    assert found == [Damage("validation/00000002.arrow", None, None, "the end mark or the footer differs")]


def test_damage_in_several_places_is_all_named(folder: Path) -> None:
    for name in ("train/00000000.arrow", "train/00000005.arrow", "rejects/00000003.jsonl"):
        flip(folder / name, 8 * 700 if name.endswith("arrow") else 8)
    assert {found.file for found in verify(str(folder))} == {
        "train/00000000.arrow",
        "train/00000005.arrow",
        "rejects/00000003.jsonl",
    }


def test_a_lost_file_is_named(folder: Path) -> None:
    (folder / "train" / "00000002.arrow").unlink()
    found = verify(str(folder))
    assert [(damage.file, damage.what) for damage in found] == [
        ("train/00000002.arrow", "cannot be read: No such file or directory")
    ]


def test_a_file_that_was_added_is_named(folder: Path) -> None:
    (folder / "train" / "00000099.arrow").write_bytes(b"x")
    assert verify(str(folder)) == [Damage("train/00000099.arrow", None, None, "is not in the manifest")]


def test_a_cut_file_is_named_with_both_lengths(folder: Path) -> None:
    path = folder / "train" / "00000002.arrow"
    num_bytes = path.stat().st_size
    with path.open("rb+") as file:
        file.truncate(num_bytes - 5)
    assert f"{num_bytes - 5} bytes; {num_bytes} were written" in str(verify(str(folder))[0])


def test_a_file_of_zeros_is_found(folder: Path) -> None:
    path = folder / "train" / "00000002.arrow"
    path.write_bytes(bytes(path.stat().st_size))
    assert {found.file for found in verify(str(folder))} == {"train/00000002.arrow"}


def test_a_folder_without_a_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="herd tokenize"):
        verify(str(tmp_path))
