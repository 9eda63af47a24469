"""`serve deploy cluster/serve_config.yaml` on a running cluster."""

import sys
import time
from pathlib import Path

import pytest
import yaml

from gpt_core.model.gpt import GPT
from gpt_core.model.presets import ModelShape
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import Description
from tests.e2e.private_head import ADDRESS, RAY_ADDRESS, ROOT

pytestmark = pytest.mark.slow
COMPLETE = """
import json, urllib.request
body = json.dumps({"prompt": "a", "max_tokens": 4}).encode()
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=5))["usage"]["completion_tokens"])
"""

STATUS = """
import os, urllib.request
headers = {"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]}
request = urllib.request.Request(os.environ["RAY_API_SERVER_ADDRESS"] + "/api/serve/applications/", headers=headers)
print(urllib.request.urlopen(request, timeout=20).read().decode())
"""


def write_checkpoint(folder: Path) -> None:
    tokenizer = load_tokenizer("bytes")
    shape = ModelShape(1, 1, 16, num_positions=32, vocabulary_size=tokenizer.vocabulary_size)
    weights = {name: tensor.detach() for name, tensor in GPT(shape).initialise(0).named_parameters()}
    entry = {"name": "bytes", "vocabulary_size": tokenizer.vocabulary_size}
    checkpoint.write(folder, Description(step=1, tokens=1, shape=shape, tokenizer=entry), weights, {})


def wait_until(reached, what_else, seconds=60):
    give_up = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > give_up:
            pytest.fail(what_else())
        time.sleep(0.5)


@pytest.mark.timeout(240)
def test_a_checkpoint_deployed_during_a_job_without_http_is_refused_and_answers_after_it(head, tmp_path):
    def status():
        return "".join(head.run([sys.executable, "-c", STATUS], tmp_path)[1:])

    def deploy():
        code, out, err = head.run(["serve", "deploy", "serve.yaml", "--address", ADDRESS], tmp_path)
        assert code == 0, out + err

    def answer():
        return head.run([sys.executable, "-c", COMPLETE], tmp_path)

    write_checkpoint(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a\n" * 200_000)
    config = yaml.safe_load((ROOT / "cluster" / "serve_config.yaml").read_text())
    config["applications"][0]["args"]["checkpoint"] = str(tmp_path / "model")
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    words = ["--checkpoint", "model", "--prompts", "prompts.txt", "--output", "made", "--tracking.enabled", "false"]
    job = head.start(["herd", "generate", *words], tmp_path, RAY_ADDRESS=RAY_ADDRESS)
    wait_until(lambda: "RUNNING" in status(), lambda: head.kill(job) or status())
    deploy()
    wait_until(lambda: "DEPLOY_FAILED" in status(), lambda: head.kill(job) or status())
    assert "a Ray Serve without HTTP on this cluster, for herd-generate-" in status()
    head.interrupt(job)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 130, out + err
    assert not out, "Ray Serve's end was told on standard output"
    assert "ServeController" not in err
    deploy()
    wait_until(lambda: answer()[0] == 0, lambda: answer()[2] + status())
    assert int(answer()[1]) in range(1, 5)
    code, out, err = head.run(["serve", "shutdown", "--yes", "--address", ADDRESS], tmp_path)
    assert code == 0, out + err
