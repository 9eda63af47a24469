"""Promises of gpt_core.generation.native_code: which compiler is called, and what is said of one that fails."""

import errno
import os
import shutil

import pytest

from gpt_core.generation.native_code import CompileError, compiled


def script(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("given", ["", "  "])
def test_an_empty_cxx_is_as_good_as_none(monkeypatch, given):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler; install g++")
    monkeypatch.setenv("CXX", given)
    assert compiled("int8_rows.cpp").rescale


def test_a_folder_that_cannot_be_removed_yet_is_no_reason_to_go_without(monkeypatch, tmp_path):
    """As on NFS, which keeps a file that is still mapped under another name."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler; install g++")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def rmdir(path, **_):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)

    monkeypatch.setattr("os.rmdir", rmdir)
    assert compiled("int8_rows.cpp").rescale


def test_cxx_may_hold_words_and_quoted_spaces(monkeypatch, tmp_path):
    (tmp_path / "my tools").mkdir()
    compiler = script(tmp_path / "my tools", "cc", 'echo "called with $1" >&2; exit 3')
    monkeypatch.setenv("CXX", f"'{compiler}' -m64")
    with pytest.raises(CompileError, match=r"ended with 3: called with -m64$"):
        compiled("int8_rows.cpp")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("no-such-compiler", "no C++ compiler 'no-such-compiler'; install g++, or set CXX"),
        ('g++ "', "CXX is 'g++ \"': No closing quotation; set it to a compiler"),
    ],
)
def test_a_cxx_that_is_no_compiler_is_named(monkeypatch, given, told):
    monkeypatch.setenv("CXX", given)
    with pytest.raises(CompileError) as caught:
        compiled("int8_rows.cpp")
    assert str(caught.value) == told


def test_a_failing_compiler_has_its_say(monkeypatch, tmp_path):
    compiler = script(tmp_path, "old-c++", "echo \"unknown value 'native' for -march\" >&2; exit 1")
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(CompileError, match="old-c\\+\\+ ended with 1: unknown value 'native' for -march"):
        compiled("int8_rows.cpp")


def test_a_compiler_that_makes_nothing_is_an_error_of_the_same_kind(monkeypatch):
    monkeypatch.setenv("CXX", "true")
    with pytest.raises(CompileError, match=r"native\.so"):
        compiled("int8_rows.cpp")
