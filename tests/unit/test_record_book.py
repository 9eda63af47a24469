"""What a job records when its disk is full: an error that says what to do, and never in place of another one."""

import errno
import os
import threading

import pytest

from cluster.recording.journal import read_all
from cluster.recording.record_book import RecordBook
from gpt_core.errors import ResourceError

FULL = r"found No space left on device; expected a place with room to write; free space and run it again$"


@pytest.fixture
def disk(monkeypatch):
    """Call it to fill the disk."""
    write, is_full = os.write, threading.Event()

    def write_if_room(file, data):
        if is_full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(os, "write", write_if_room)
    return is_full


def run_job(book, work):
    with book.opened("", "job", "pipeline", None) as run:
        work(run)


@pytest.mark.parametrize(
    "record",
    [
        lambda run: run.log_metrics({"loss": 1.0}, step=1),
        lambda run: run.set_tags({"a": 1}),
        lambda run: run.log_dataset("corpus", "d" * 64, "/corpus"),
        lambda run: run.log_settings({"a": 1}),
        lambda run: run.log_load({"system/a": 1.0}),
    ],
)
def test_full_disk_ends_the_job_with_what_to_do(tmp_path, disk, record):
    book = RecordBook(tmp_path / "tracking", None, system_seconds=None)
    with pytest.raises(ResourceError, match=FULL) as caught:
        run_job(book, lambda run: (disk.set(), record(run)))
    assert caught.value.exit_code == 2
    disk.clear()
    assert book.close(1.0)


@pytest.mark.parametrize("name", ["write_bytes", "mkdir"])
def test_full_disk_under_a_file_of_the_run_ends_the_job_with_what_to_do(tmp_path, monkeypatch, name):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    book = RecordBook(tmp_path / "tracking", None, system_seconds=None)
    with book.opened("", "job", "pipeline", None) as run, monkeypatch.context() as patch:
        patch.setattr(f"pathlib.Path.{name}", full)
        with pytest.raises(ResourceError, match=FULL):
            run.log_table([{"a": 1}], "samples.json")


def test_the_jobs_own_error_is_told_where_the_disk_is_full_as_well(tmp_path, disk):
    book = RecordBook(tmp_path / "tracking", None, system_seconds=None)
    with pytest.raises(ZeroDivisionError):
        run_job(book, lambda run: disk.set() or 1 / 0)
    book.close(1.0)


def test_samples_of_the_load_go_on_when_the_disk_has_room_again(tmp_path, disk):
    disk_was_full = threading.Event()
    book = RecordBook(tmp_path / "tracking", None, system_seconds=0.01)
    with book.opened("", "job", "pipeline", None):
        append = book.append_system

        def seen(sample):
            try:
                append(sample)
            except ResourceError:
                disk_was_full.set()
                raise

        assert book._sampler is not None
        book._sampler._receive = seen
        disk.set()
        assert disk_was_full.wait(60)
        disk.clear()
        before = book.journal.path.stat().st_size
        while book.journal.path.stat().st_size == before:
            disk_was_full.wait(0.01)
    assert book.close(1.0)
    assert [record["status"] for record in read_all(book.journal.path) if record["do"] == "close"] == ["FINISHED"]
