"""One step of a run computed again from the nearest checkpoint before it, for `herd replay` and tests."""

from dataclasses import replace

from gpt_core.errors import RunFailedError
from gpt_core.training import begun, checkpoint
from gpt_core.training.loop import Run
from gpt_core.training.observer import Silence
from gpt_core.training.reduction import Ranks
from gpt_core.training.step import StepReport
from gpt_core.training.training_plan import TrainingPlan


def replay(run_folder: str, step: int, ranks: Ranks | None = None, corpus: str | None = None) -> StepReport:
    """Recompute one step of a finished or unfinished run from the nearest checkpoint before it.

    Returns the loss and norm that were logged for it, bit for bit in exact mode; writes nothing.

    Args:
        run_folder: Output folder of the run.
        step: Step to recompute, counted from 1 as it was logged.
        ranks: This process among its peers.
        corpus: Folder of the corpus, where it has moved.

    Raises:
        CheckpointError: The folder is none of a training run.
    """
    plan = _plan_before(run_folder, step)
    plan = replace(plan, output=run_folder, corpus=corpus or plan.corpus)
    run = Run(plan, ranks or Ranks(), Silence())
    run.resume(before=step)
    report: StepReport | None = None
    with run.batches(stop_step=step) as batches:
        while run.learner.step < step:
            report = run.take_step(batches.take()[0])
    if report is None:
        raise RunFailedError(run_folder, f"step {step}", "a step of 1 or more", "name one that was logged")
    return report


def _plan_before(run_folder: str, step: int) -> TrainingPlan:
    """Return the plan the run was at when it took the step: threads, for one, may be others after a resume."""
    start = checkpoint.load_newest(run_folder, before=step)
    found = begun.Begun.of(run_folder, start.description) if start else begun.read(run_folder)
    return (found or begun.newest(run_folder)).plan


def replay_rank(ranks: Ranks, run_folder: str, step: int, corpus: str | None) -> StepReport:
    """Call ``replay`` as one rank of several."""
    return replay(run_folder, step, ranks, corpus)
