"""Promises of generation.prompts: every row is a prompt or set aside, and ranges give back what the scan saw."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.errors import CorpusError
from gpt_core.generation.prompt_files import MAX_ROW_BYTES
from gpt_core.generation.prompts import read_range, scan_prompts
from gpt_core.generation.request import Sampling

SAMPLING = Sampling(max_tokens=5)


def read_all(*paths, size=2, sampling=SAMPLING):
    scan = scan_prompts(tuple(map(str, paths)), sampling, size)
    shards = [read_range(scan.files, cut, sampling) for cut in scan.ranges]
    assert sum(map(len, shards)) == scan.num_prompts
    assert all(1 <= len(shard) <= size for shard in shards)
    return [prompt for shard in shards for prompt in shard], scan


def write_lines(path, *rows):
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def test_a_text_file_holds_a_prompt_a_line_and_lines_name_the_prompts(tmp_path):
    path = tmp_path / "some.txt"
    path.write_bytes("one\r\n\n  \nzwö \nlast".encode())
    prompts, scan = read_all(path)
    assert [(p.id, p.text, p.line) for p in prompts] == [
        ("some.txt:1", "one", 1), ("some.txt:4", "zwö ", 4), ("some.txt:5", "last", 5),
    ]  # fmt: skip
    assert scan.rejects == ()
    assert all(prompt.sampling == SAMPLING for prompt in prompts)


def test_a_json_row_can_have_an_id_and_sampling_of_its_own(tmp_path):
    path = write_lines(
        tmp_path / "some.jsonl",
        {"prompt": "a", "id": "first", "sampling": {"temperature": 0.5, "stop": "x", "n": 2, "top_k": None}},
        {"prompt": "b", "id": 17},
        {"prompt": "c", "id": None, "sampling": None},
    )
    prompts, _ = read_all(path)
    assert [prompt.id for prompt in prompts] == ["first", "17", "some.jsonl:3"]
    assert prompts[0].sampling == Sampling(max_tokens=5, temperature=0.5, stop=("x",), n=2)
    assert prompts[2].sampling == SAMPLING


POISON = [
    (b'{"prompt": "\xff"}', "found byte 0xff at offset 12 of the row; expected valid UTF-8"),
    (b'{"prompt": "cut', "found broken JSON"),
    (b"[" * 100_000, "found broken JSON"),
    (b'{"prompt": "\\ud800"}', "found broken JSON"),
    (b'["a"]', "found ['a']; expected an object with a text in 'prompt'"),
    (b"{}", "found no field 'prompt'; expected a text of at least one character"),
    (b'{"prompt": ""}', "found ''; expected a text of at least one character"),
    (b'{"prompt": 3}', "found 3; expected a text"),
    (b'{"prompt": "a", "idd": "x"}', "found the field 'idd'; expected no others than prompt, id, sampling"),
    (b'{"prompt": "a", "id": [1]}', "found [1] in 'id'; expected a text or a whole number"),
    (b'{"prompt": "a", "id": true}', "found True in 'id'"),
    (b'{"prompt": "a", "sampling": "hot"}', "found 'hot' in 'sampling'; expected an object"),
    (b'{"prompt": "a", "sampling": {"temprature": 1}}', "sampling: found field 'temprature'; expected one of"),
    (b'{"prompt": "a", "sampling": {"temperature": -1}}', "sampling.temperature: found -1"),
    (b'{"prompt": "a", "sampling": {"seed": 1e99}}', "sampling.seed: found 1e+99"),
    (b'{"prompt": "a", "sampling": {"max_tokens": 0}}', "sampling.max_tokens: found 0"),
    (b'{"prompt": "a", "sampling": {"stop": {"a": 1}}}', "sampling.stop: found {'a': 1}"),
    (b'{"prompt": "a", "id": "good"}', "found the id 'good' a second time"),
    (b'{"prompt": "' + b"a" * MAX_ROW_BYTES + b'"}', "expected at most 1048576"),
]


@pytest.mark.parametrize(("row", "reason"), POISON, ids=range(len(POISON)))
def test_a_poison_row_is_set_aside_with_its_line_and_reason_and_stops_no_other(tmp_path, row, reason):
    path = write_lines(tmp_path / "some.jsonl", {"prompt": "first", "id": "good"}, row, {"prompt": "last"})
    prompts, scan = read_all(path, size=1)
    assert [prompt.text for prompt in prompts] == ["first", "last"]
    (rejected,) = scan.rejects
    assert (rejected.file, rejected.line) == ("some.jsonl", 2)
    assert reason in rejected.reason


def test_an_id_that_stands_in_another_file_or_is_another_row_s_place_is_found(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"prompt": "1", "id": "x"}, {"prompt": "2", "id": "b.jsonl:2"})
    write_lines(tmp_path / "b.jsonl", {"prompt": "3", "id": "x"}, {"prompt": "4"}, {"prompt": "5", "id": "x"})
    prompts, scan = read_all(tmp_path / "b.jsonl", tmp_path / "a.jsonl", size=10)
    assert [prompt.text for prompt in prompts] == ["1", "2"]
    assert [(reject.file, reject.line) for reject in scan.rejects] == [("b.jsonl", line) for line in (1, 2, 3)]


@pytest.mark.parametrize(("name", "rows"), [("some.txt", b"one\ntwo\n"), ("some.jsonl", b'{"prompt": "one"}\n["two"]')])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path, name, rows):
    marked = b"\xef\xbb\xbf" + rows
    for path, data in ((tmp_path / name, marked), (tmp_path / f"{name}.gz", gzip.compress(marked))):
        path.write_bytes(data)
        assert read_all(path, size=1)[0][0].text == "one"


def write_table(path, columns):
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("name", ["some.parquet", "some.arrow"])
def test_tables_give_the_prompts_their_lines_would(tmp_path, name):
    broken = pa.array([b"a", b"\xff", b"c", b"d", None]).cast(pa.binary()).view(pa.string())
    sampling = pa.array([{"seed": 1, "top_k": None}, None, {"seed": -5, "top_k": 3}, {"seed": 2, "top_k": 0}, None])
    path = write_table(tmp_path / name, {"prompt": broken, "id": pa.array([7, 8, None, 10, 11]), "sampling": sampling})
    prompts, scan = read_all(path, size=1)
    assert [(p.id, p.text, p.sampling.seed, p.sampling.top_k) for p in prompts] == [
        ("7", "a", 1, None), (f"{name}:3", "c", -5, 3),
    ]  # fmt: skip
    assert [reject.line for reject in scan.rejects] == [2, 4, 5]
    assert "expected valid UTF-8" in scan.rejects[0].reason
    assert "sampling.top_k: found 0" in scan.rejects[1].reason


def test_sampling_in_a_table_can_be_json(tmp_path):
    rows = {"prompt": ["a", "b", "c"], "sampling": ['{"n": 2}', None, "{n}"]}
    prompts, scan = read_all(write_table(tmp_path / "some.parquet", rows))
    assert [prompt.sampling.n for prompt in prompts] == [2, 1]
    assert "found broken JSON" in scan.rejects[0].reason


def test_a_column_of_another_type_sets_every_row_aside(tmp_path):
    _, scan = read_all(write_table(tmp_path / "some.parquet", {"prompt": [1, 2, 3]}))
    assert [reject.line for reject in scan.rejects] == [1, 2, 3]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "found the columns text; expected a column 'prompt' of texts"),
        ({"prompt": ["a"], "temprature": [1.0]}, "found the column 'temprature'; expected no others than prompt, id"),
    ],
)
def test_a_table_of_other_columns_is_refused(tmp_path, columns, message):
    with pytest.raises(CorpusError, match=message):
        read_all(write_table(tmp_path / "some.parquet", columns))


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_no_memory_beyond_a_text_is_read_over_a_damaged_offset(tmp_path, new):
    path, table = tmp_path / "some.arrow", pa.table({"prompt": ["a" * 8, "b" * 8], "id": [1, 2]})
    with new(path, table.schema) as writer:
        writer.write_table(table)
    offsets, damaged = np.array([0, 8, 16], "<i4").tobytes(), np.array([0, 8, 40], "<i4").tobytes()
    data = path.read_bytes()
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, damaged))
    prompts, scan = read_all(path)
    assert prompts == []
    assert [(reject.line, "expected a whole arrow file" in reject.reason) for reject in scan.rejects] == [(1, True)]


@pytest.mark.parametrize("name", ["some.parquet", "some.arrow", "some.jsonl.gz"])
def test_a_damaged_file_is_set_aside_from_the_damage_on(tmp_path, name):
    (tmp_path / name).write_bytes(b"not what the suffix says")
    write_lines(tmp_path / "good.jsonl", {"prompt": "a"})
    prompts, scan = read_all(tmp_path)
    assert [prompt.text for prompt in prompts] == ["a"]
    assert [(reject.file, reject.line) for reject in scan.rejects] == [(name, 1)]


def test_compressed_files_and_folders_are_read(tmp_path):
    (tmp_path / "some.txt.gz").write_bytes(gzip.compress(b"one\ntwo\nthree\n"))
    (tmp_path / "other.txt").write_text("four\n")
    prompts, _ = read_all(tmp_path, size=1)
    assert [prompt.text for prompt in prompts] == ["four", "one", "two", "three"]


def test_files_are_named_by_globs_and_urls_too(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("two\n")
    assert [prompt.id for prompt in read_all(tmp_path / "[ab].txt")[0]] == ["a.txt:1", "b.txt:1"]
    assert [prompt.id for prompt in read_all(f"file://{tmp_path}/b.txt")[0]] == ["b.txt:1"]
    with pytest.raises(CorpusError, match="found no such file"):
        read_all(f"file://{tmp_path}/c.txt")


def test_missing_files_and_unknown_formats_are_refused(tmp_path):
    with pytest.raises(
        CorpusError, match=r"none\.txt: found no such file; expected a file of prompts; .*the command is run"
    ):
        read_all(tmp_path / "none.txt")
    (tmp_path / "some.docx").write_text("a")
    with pytest.raises(CorpusError, match=r"found the suffix '\.docx'; expected \.txt, \.jsonl, \.parquet, \.arrow or"):
        read_all(tmp_path / "some.docx")


def test_a_file_that_changed_after_the_scan_is_refused(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("one\ntwo\n")
    scan = scan_prompts((str(path),), SAMPLING, 1)
    path.write_text("one\nTWO\n")
    assert len(read_range(scan.files, scan.ranges[0], SAMPLING)) == 1
    with pytest.raises(CorpusError, match="rows 2 to 2: found other prompts than at the start"):
        read_range(scan.files, scan.ranges[1], SAMPLING)


LINES = st.one_of(
    st.sampled_from([b"", b"  ", b"{", b'{"prompt": ""}', b'{"prompt": "\xff"}', b'{"prompt": "p", "id": "same"}']),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).map(lambda t: json.dumps({"prompt": t}).encode()),
)


@given(rows=st.lists(LINES, max_size=30), size=st.integers(1, 7))
def test_every_row_is_a_prompt_set_aside_or_blank_however_it_is_cut(tmp_path_factory, rows, size):
    path: Path = tmp_path_factory.mktemp("rows") / "some.jsonl"
    write_lines(path, *rows)
    prompts, scan = read_all(path, size=size)
    blank = {line for line, row in enumerate(rows, start=1) if not row.strip()}
    lines = [prompt.line for prompt in prompts] + [reject.line for reject in scan.rejects]
    assert sorted(lines) == sorted(set(range(1, len(rows) + 1)) - blank)
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    whole, _ = read_all(path, size=1000)
    assert prompts == whole


def test_the_digest_tells_prompts_apart_and_not_the_sampling_of_the_job(tmp_path):
    path = write_lines(tmp_path / "some.jsonl", {"prompt": "a", "sampling": {"seed": 3}}, {"prompt": "b"})
    digest = read_all(path)[1].digest
    assert read_all(path, sampling=Sampling(seed=3))[1].digest == digest
    for rows in ([{"prompt": "a"}, {"prompt": "b"}], [{"prompt": "a", "sampling": {"seed": 3}}, {"prompt": ""}]):
        assert read_all(write_lines(path, *rows))[1].digest != digest
