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


def write_checkpoint(folder: Path) -> None:
    tokenizer = load_tokenizer("bytes")
    shape = ModelShape(1, 1, 16, num_positions=32, vocabulary_size=tokenizer.vocabulary_size)
    weights = {name: tensor.detach() for name, tensor in GPT(shape).initialise(0).named_parameters()}
    entry = {"name": "bytes", "vocabulary_size": tokenizer.vocabulary_size}
    checkpoint.write(folder, Description(step=1, tokens=1, shape=shape, tokenizer=entry), weights, {})


def test_a_deployed_checkpoint_answers_over_http_also_after_a_job_that_needed_no_http(head, tmp_path):
    write_checkpoint(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a\n")
    words = ["--checkpoint", "model", "--prompts", "prompts.txt", "--output", "made", "--tracking.enabled", "false"]
    code, out, err = head.run(["herd", "generate", *words], tmp_path, RAY_ADDRESS=RAY_ADDRESS)
    assert code == 0, out + err
    assert out.startswith(f"{tmp_path}/made: 1 rows"), "Ray Serve's end was told on standard output"
    assert "ServeController" not in err
    config = yaml.safe_load((ROOT / "cluster" / "serve_config.yaml").read_text())
    config["applications"][0]["args"]["checkpoint"] = str(tmp_path / "model")
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    code, out, err = head.run(["serve", "deploy", "serve.yaml", "--address", ADDRESS], tmp_path)
    assert code == 0, out + err
    give_up = time.monotonic() + 60
    while True:
        code, out, err = head.run([sys.executable, "-c", COMPLETE], tmp_path)
        if code == 0:
            break
        if time.monotonic() > give_up:
            pytest.fail(err + "".join(head.run(["serve", "status", "--address", ADDRESS], tmp_path)[1:]))
        time.sleep(1)
    assert int(out) in range(1, 5)
    code, out, err = head.run(["serve", "shutdown", "--yes", "--address", ADDRESS], tmp_path)
    assert code == 0, out + err
