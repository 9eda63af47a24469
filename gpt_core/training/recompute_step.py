"""One step of a run computed again from the nearest checkpoint before it, for `herd replay` and tests."""

from gpt_core.errors import RunFailedError
from gpt_core.training import checkpoint
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
        CheckpointError: The folder has no checkpoint.
    """
    newest = checkpoint.load(run_folder)
    values = newest.description.settings
    plan = TrainingPlan.from_dict(values | {"output": run_folder, "corpus": corpus or values["corpus"]})
    run = Run(plan, ranks or Ranks(), Silence())
    run.resume(before=step)
    report: StepReport | None = None
    with run.batches(stop_step=step) as batches:
        while run.learner.step < step:
            report = run.take_step(batches.take()[0])
    if report is None:
        raise RunFailedError(run_folder, f"step {step}", "a step of 1 or more", "name one that was logged")
    return report


def replay_rank(ranks: Ranks, run_folder: str, step: int, corpus: str | None) -> StepReport:
    """Call ``replay`` as one rank of several."""
    return replay(run_folder, step, ranks, corpus)
