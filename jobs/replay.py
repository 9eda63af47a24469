"""Recompute one step of a training run and compare its loss and gradient norm with the logged ones, bit for bit."""

from gpt_core.counted import counted
from gpt_core.errors import RunFailedError, SettingsError
from gpt_core.settings import ReplaySettings
from jobs import cli

SETTINGS = ReplaySettings
EXAMPLE = "--run runs/mine/model --step 7"


def main(settings: ReplaySettings) -> str:
    """Return the numbers and that they are the logged ones.

    Raises:
        SettingsError: The step was never logged.
        RunFailedError: The numbers are not the logged ones, to the last bit.
    """
    from gpt_core.training.history import logged_steps
    from gpt_core.training.local_ranks import run_on_ranks
    from gpt_core.training.recompute_step import replay_rank

    logged = logged_steps(settings.run)
    if settings.step not in logged:
        raise SettingsError("step", str(settings.step), _known(sorted(logged)), "name one that was logged")
    before = logged[settings.step].values
    report = run_on_ranks(settings.num_workers, replay_rank, settings.run, settings.step, settings.corpus)
    now = {"loss": report.loss, "grad_norm": report.grad_norm}
    differing = [name for name in now if now[name] != before[name]]
    if differing:
        raise RunFailedError(
            f"step {settings.step} of {settings.run}",
            ", ".join(f"{name} {now[name]!r}" for name in differing),
            f"the logged {', '.join(f'{before[name]!r}' for name in differing)}",
            "replay on the kind of machine, with the torch release and threads per worker of the run",
        )
    lines = [f"step {settings.step} of {settings.run}, recomputed by {counted(settings.num_workers, 'worker')}:"]
    return "\n".join([*lines, *(f"  {name:<10}{value!r}, equal to the logged one" for name, value in now.items())])


def _known(steps: list[int]) -> str:
    return f"one from {steps[0]} to {steps[-1]}" if steps else "a run that has logged steps"


if __name__ == "__main__":
    cli.run_module(__file__)
