"""Say where two training runs part: settings, corpus, first step whose numbers differ."""

from typing import TYPE_CHECKING

from gpt_core.counted import counted
from gpt_core.settings import CompareSettings
from jobs import cli

if TYPE_CHECKING:
    from gpt_core.training.history import Parting

SETTINGS = CompareSettings
ARGUMENT = "runs"
EXAMPLE = "runs/mine/model runs/other/model"


def main(settings: CompareSettings) -> str:
    """Return the comparison as lines for people."""
    from gpt_core.training.history import compare

    parting = compare(*settings.runs)
    return "\n".join([f"{settings.runs[0]} and {settings.runs[1]}", *_lines(parting)])


def _lines(parting: "Parting") -> list[str]:
    lines = [f"  settings   {name}: {first!r} and {second!r}" for name, first, second in parting.settings]
    lines = lines or ["  settings   equal in all that decides results"]
    if parting.corpus is None:
        lines.append("  corpus     equal")
    else:
        lines.append(f"  corpus     {parting.corpus[0]} and {parting.corpus[1]}")
    lines.append(f"  logged     to step {parting.steps[0]} and to step {parting.steps[1]}")
    for run, missing in zip(("first", "second"), parting.missing, strict=True):
        if missing:
            lines.append(
                f"  missing    {counted(len(missing), 'step')} of the {run} run's journal, step {missing[0]} first"
            )
    return [*lines, f"  steps      {_steps(parting)}"]


def _steps(parting: "Parting") -> str:
    if parting.first_step is not None and parting.numbers is not None:
        name, first, second = parting.numbers
        return f"part at step {parting.first_step}: {name} {first!r} and {second!r}"
    if not parting.num_common:
        return "none in common"
    return f"equal to the last bit in all {parting.num_common} that both logged"


if __name__ == "__main__":
    cli.run_module(__file__)
