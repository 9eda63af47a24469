"""What a run was begun with, written before its first step is logged.

Of the steps in a run's journal the first ones logged count. RUN/begun.json keeps another run from being logged
beside them where the first one was killed before its first checkpoint. Written by the training loop; read by
it, by the driver, and by `herd replay` and `herd compare`.
"""

from dataclasses import dataclass, replace

from gpt_core import sealed_json
from gpt_core.errors import CheckpointError
from gpt_core.ledger import differences
from gpt_core.storage import location
from gpt_core.training import checkpoint
from gpt_core.training.checkpoint import DamagedCheckpointError, Description
from gpt_core.training.training_plan import TrainingPlan, check_resume

BEGUN = "begun.json"


@dataclass(frozen=True, slots=True)
class Begun:
    """A training run's corpus and plan; once begun, "auto" in the plan has become the precision it meant."""

    corpus_digest: str | None
    plan: TrainingPlan

    @staticmethod
    def of(run_folder: str, description: Description) -> "Begun":
        """Return what a checkpoint's run was begun with.

        Raises:
            CheckpointError: The checkpoint is an imported model's, behind which there is no run.
        """
        if not description.settings:
            raise CheckpointError(
                run_folder,
                "an imported model",
                "the folder of a training run",
                "choose another folder, or train on from this one with `herd finetune --checkpoint`",
            )
        return Begun(description.corpus_digest, TrainingPlan.from_dict(description.settings))


def write(begun: Begun) -> None:
    """Write begun.json into the plan's output folder, atomically.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written.
    """
    path = location(begun.plan.output) / BEGUN
    try:
        sealed_json.write(path, {"corpus_digest": begun.corpus_digest, "plan": begun.plan.to_dict()})
    except OSError as error:
        found = error.strerror or str(error)
        raise CheckpointError(str(path), found, "a folder with room to write", "free space and run it again") from error


def read(run_folder: str) -> Begun | None:
    """Return what begun.json says, None where there is none.

    Raises:
        CorpusError: A bit of it is not as it was written.
    """
    content = sealed_json.read(location(run_folder) / BEGUN)
    if content is None:
        return None
    return Begun(content["corpus_digest"], TrainingPlan.from_dict(content["plan"]))


def newest(run_folder: str) -> Begun:
    """Return what a run was last trained with: its newest checkpoint's plan, begun.json's where it has none.

    Raises:
        CheckpointError: The folder is none of a training run.
    """
    for path in reversed(checkpoint.list_paths(run_folder)):
        try:
            return Begun.of(run_folder, checkpoint.read_description(path))
        except DamagedCheckpointError:
            continue
    if found := read(run_folder):
        return found
    raise CheckpointError(
        run_folder, f"no {BEGUN} and no whole checkpoint", "the folder of a training run", "name another"
    )


def check(ours: Begun, resumed: Description | None) -> None:
    """Refuse to train in the folder of another run, or from its checkpoint.

    Raises:
        CheckpointError: Names the first setting that differs, both values, and what to do.
    """
    folder = ours.plan.output
    for theirs in (read(folder), resumed and Begun.of(folder, resumed)):
        if theirs is not None:
            # What "auto" means is known, and checked, where the workers are.
            precision = theirs.plan.precision if ours.plan.precision == "auto" else ours.plan.precision
            now = replace(ours, plan=replace(ours.plan, precision=precision))
            has_own_decay = theirs.plan.recipe.decay_tokens or now.plan.recipe.decay_tokens
            num_steps = None if has_own_decay else (theirs.plan.num_steps, now.plan.num_steps)
            check_resume(folder, _identity(theirs), _identity(now), num_steps)


def told_rounding(plan: TrainingPlan) -> str | None:
    """Say what keeps a resumed run from the bits it promised at its beginning; None where nothing does."""
    begun = read(plan.output)
    if begun is None or begun.plan.reduction != "exact":
        return None
    changes = [f"{name} {old!r}, now {new!r}" for name, old, new in differences(begun.plan.rounding(), plan.rounding())]
    if not changes:
        return None
    return f"begun with {', '.join(changes)}; the last bits of the steps from here on are not those of a calm run"


def _identity(begun: Begun) -> dict[str, object]:
    return {"corpus": begun.corpus_digest, **begun.plan.identity()}
