"""`herd generate` as a user starts it, ways to hurt it, and a count of every token that is drawn."""

import contextlib
import os
from pathlib import Path

import psutil
import yaml

from tests.chaos import command

NUM_PROMPTS, TOKENS_PER_PROMPT = 160, 40
_COUNTS = "HERD_TEST_COUNTS"
_COUNT = f"""
def count(module):
    plain = module.Engine.step
    def step(self):
        events = plain(self)
        note(os.environ[{_COUNTS!r}], b"x" * sum(event.token_id is not None for event in events))
        return events
    module.Engine.step = step
"""


def write_job(folder: Path, model: Path) -> Path:
    """Write prompts, the counting module and a settings file into the folder; return the settings file."""
    (folder / "prompts.txt").write_text("".join(f"prompt number {i}\n" for i in range(NUM_PROMPTS)))
    command.write_counting(folder, "gpt_core.generation.engine", _COUNT)
    (folder / "counts").mkdir()
    settings = {
        "checkpoint": str(model),
        "prompts": [str(folder / "prompts.txt")],
        # What is in flight when something dies is computed again: two prompts of 160.
        "prompts_per_shard": 1,
        "sampling": {"max_tokens": TOKENS_PER_PROMPT, "seed": 7},
        "engine": {"num_slots": 4, "precision": "fp32", "device": "cpu"},
        "pool": {"cpus_per_actor": 0.1, "max_actors": 2},
        "cluster": {"num_cpus": 4},
        "tracking": {"enabled": False},
    }
    path = folder / "generate.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def num_tokens_drawn(folder: Path) -> int:
    """Return the tokens that engines of any process drew for the folder's job."""
    return command.num_counted(folder / "counts")


def files_of(output: Path) -> dict[str, bytes]:
    """Return the bytes of everything in a dataset's folder but the lock and the records of the runs that made it."""
    names = {str(path.relative_to(output)): path for path in output.rglob("*") if path.is_file()}
    return {name: names[name].read_bytes() for name in names if name != ".job" and not name.startswith("tracking/")}


class Command(command.Command):
    """One `python -m jobs.generate` into the folder's output, and the processes below it."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "out"
        environment = {"PYTHONPATH": f"{folder}{os.pathsep}{command.ROOT}", _COUNTS: str(folder / "counts")}
        words = ["-m", "jobs.generate", "--config", "generate.yaml", "--output", str(self.output)]
        super().__init__(words, folder / "log", folder, environment)

    def wait_for_shards(self, count: int) -> None:
        """Return once this many shards are there, or when the command has ended."""
        self.wait_until(lambda: len(list(self.output.glob("rows/*.jsonl"))) >= count)

    def end_after(self, seconds: float) -> None:
        """Give the command some time to end by itself, then end it."""
        with contextlib.suppress(psutil.TimeoutExpired):
            self._process.wait(seconds)
        self.end()
