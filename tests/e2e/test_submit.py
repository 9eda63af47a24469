"""`herd submit` and `herd jobs` as a user types them, against a real head that asks for a token."""

import re
import time
from pathlib import Path

import pytest

from tests.e2e.private_head import RAY_ADDRESS

pytestmark = pytest.mark.slow


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"file {number}: a few words of text\n" * 20)
    return folder


def words_for(text: Path, output: Path) -> list[str]:
    """Relative to the current folder on purpose: a submitted job must mean the submitter's folder."""
    return ["tokenize", "--input", text.name, "--output", output.name, "--tokenizer.name", "bytes"]


def submitted_as(text: str) -> str:
    found = re.search(r"herd jobs stop (tokenize-\S+)", text)
    return found.group(1) if found else ""


def test_a_submitted_job_shows_its_lines_and_ends_with_exit_code_zero(head, text, tmp_path):
    code, out, err = head.run(["herd", "submit", *words_for(text, tmp_path / "corpus")], tmp_path)
    assert code == 0, out + err
    assert f"tokenize: writing {tmp_path}/corpus" in out
    assert "3 documents" in out
    assert "root digest" in out
    assert "Running entrypoint" not in out
    assert re.search(r"submit: tokenize to http://127\.0\.0\.1:8265 \(Ray 2\.60\.\d; 1 node, 2 CPUs, 0 GPUs\)", err)
    assert (tmp_path / "corpus" / "manifest.json").exists()


def test_a_failing_job_ends_with_its_own_exit_code_and_message(head, text, tmp_path):
    words = ["tokenize", "--input", "no-such-folder", "--output", "corpus", "--tokenizer.name", "bytes"]
    code, out, err = head.run(["herd", "submit", *words], tmp_path)
    assert code == 2, out + err
    assert f"{tmp_path}/no-such-folder" in out
    assert "failed with exit code 2" in err


def test_a_detached_job_is_listed_and_stops_when_asked(head, text, tmp_path):
    words = [*words_for(text, tmp_path / "corpus"), "--cluster.min_cpus", "3", "--detach"]
    code, out, err = head.run(["herd", "submit", *words], tmp_path)
    assert code == 0, out + err
    job_id = submitted_as(err)
    while "waiting for 3 CPUs" not in head.run(["herd", "jobs", "logs", job_id], tmp_path)[1]:
        time.sleep(0.2)
    code, out, err = head.run(["herd", "jobs", "stop", job_id], tmp_path)
    assert (code, out) == (0, f"{job_id}: STOPPED\n"), err
    code, out, err = head.run(["herd", "jobs", "status", job_id], tmp_path)
    assert code == 130, out + err
    assert f"{tmp_path}/corpus" in out
    assert "interrupted: herd tokenize stopped" in head.run(["herd", "jobs", "logs", job_id], tmp_path)[1]
    code, out, _ = head.run(["herd", "jobs"], tmp_path)
    assert code == 0
    assert job_id in out


def test_ctrl_c_without_a_terminal_leaves_the_job_and_says_how_to_stop_it(head, text, tmp_path):
    process = head.start(["herd", "submit", *words_for(text, tmp_path / "corpus")], tmp_path)
    job_id = ""
    while not job_id:
        line = process.stderr.readline()
        assert line, "herd submit ended early"
        job_id = submitted_as(line)
    time.sleep(1)
    head.interrupt(process)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"{job_id} goes on; stop it with herd jobs stop {job_id} --cluster.address http://127.0.0.1:8265" in err
    code, out, err = head.run(["herd", "jobs", "logs", job_id, "--follow"], tmp_path)
    assert code == 0, out + err
    assert "root digest" in out


def test_a_job_the_cluster_can_never_hold_is_refused_before_it_is_sent(head, text, tmp_path):
    code, err = refused_for_size(head, text, tmp_path)
    assert code == 2
    assert (
        "pool.min_actors x pool.cpus_per_actor: found a need of 32 CPUs; expected at most the 2 the cluster has; "
        "lower it, or add nodes to the cluster" in err
    )
    assert "is submitted" not in err


def refused_for_size(head, text, tmp_path):
    words = [*words_for(text, tmp_path / "corpus"), "--pool.min_actors", "64"]
    code, _, err = head.run(["herd", "submit", *words], tmp_path)
    return code, err


def test_a_job_that_wants_more_cpus_waits_until_a_node_brings_them(head, text, tmp_path):
    words = [*words_for(text, tmp_path / "corpus"), "--cluster.min_cpus", "3", "--detach"]
    code, out, err = head.run(["herd", "submit", *words], tmp_path)
    assert code == 0, out + err
    job_id = submitted_as(err)
    while "waiting for 3 CPUs" not in head.run(["herd", "jobs", "logs", job_id], tmp_path)[1]:
        time.sleep(0.2)
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    node = head.start(["ray", "start", f"--address={RAY_ADDRESS}", "--num-cpus=1", "--block"], tmp_path)
    code, out, err = head.run(["herd", "jobs", "logs", job_id, "--follow"], tmp_path)
    assert code == 0, out + err
    assert "root digest" in out
    head.kill(node)
    while "the 2 the cluster has" not in refused_for_size(head, text, tmp_path)[1]:
        time.sleep(0.2)


def test_a_head_that_asks_for_a_token_gets_the_right_one_or_a_clear_message(head, tmp_path):
    without = {"RAY_AUTH_TOKEN": None, "RAY_AUTH_MODE": None}
    code, _, err = head.run(["herd", "jobs"], tmp_path, **without)
    assert code == 2
    assert "found a head that asks for a token (HTTP 401), and none in RAY_AUTH_TOKEN or " in err
    code, _, err = head.run(["herd", "jobs"], tmp_path, RAY_AUTH_TOKEN="f" * 64)
    assert code == 2
    assert "found a token that it refuses (HTTP 403)" in err
    file = tmp_path / "token"
    file.write_text("0123456789abcdef" * 4 + "\n")
    code, out, err = head.run(["herd", "jobs"], tmp_path, **without, RAY_AUTH_TOKEN_PATH=str(file))
    assert code == 0, out + err


def test_an_address_where_no_head_listens_is_named(head, tmp_path):
    code, _, err = head.run(["herd", "jobs", "--cluster.address", "http://127.0.0.1:1"], tmp_path)
    assert code == 2
    assert "cluster.address http://127.0.0.1:1: found no answer (connection refused)" in err
    code, _, err = head.run(["herd", "jobs", "--cluster.address", "https://127.0.0.1:8265"], tmp_path)
    assert code == 2
    assert "found a head that speaks http, not https; " in err
    assert "write http://127.0.0.1:8265" in err


def test_an_id_no_job_has_is_named(head, tmp_path):
    code, _, err = head.run(["herd", "jobs", "status", "tokenize-1"], tmp_path)
    assert code == 2
    assert err == (
        "job tokenize-1: found no such job on http://127.0.0.1:8265; expected a job's id; herd jobs list shows them\n"
    )
