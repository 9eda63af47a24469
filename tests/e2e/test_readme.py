"""The commands of README.md, run as they stand there; flags that make them short are added."""

import json
import re
import shlex
from pathlib import Path

import pytest
import zstandard

from tests.e2e.commands import ROOT, herd

_SHORT = {
    "pretrain": shlex.split("--train.max_seconds 5"),
    "generate": shlex.split("--sampling.max_tokens 4"),
}


def _commands(of: str) -> list[list[str]]:
    """Return the words of each `herd` command in the README's code blocks about a folder."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("herd ") and of in line]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_commands_for_ones_own_text_run_as_they_stand(tmp_path: Path) -> None:
    rows = (json.dumps({"text": f"The {number}th river runs past the hill at dawn."}) for number in range(300))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "rivers.jsonl.zst").write_bytes(zstandard.compress("\n".join(rows).encode()))
    (tmp_path / "prompts.txt").write_text("The river\n")
    commands = _commands("runs/mine")
    assert [words[0] for words in commands] == ["tokenize", "pretrain", "generate"]
    for words in commands:
        done = herd(*words, *_SHORT.get(words[0], []), folder=tmp_path)
        assert done.code == 0, done.err
    assert (tmp_path / "runs/mine/generated/manifest.json").exists()


def test_the_make_targets_and_the_jobs_it_names_are_there() -> None:
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in ("quickstart", "test"):
        assert f"make {target}" in readme
        assert f"\n{target}:" in makefile
    overview = herd("--help", folder=ROOT).out
    rows = [line.split("`")[1].split()[1] for line in readme.splitlines() if line.startswith("| `herd ")]
    listed = [line.split()[0] for line in overview.partition("\njobs\n")[2].splitlines() if line.startswith("  ")]
    assert sorted(rows) == sorted(listed)
