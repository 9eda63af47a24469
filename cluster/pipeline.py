"""`herd pipeline`: tokenize, pretrain, evaluate and generate, each stage fed by the one before."""

from dataclasses import dataclass
from typing import Any

from cluster import evaluating, generating, tokenizing, training
from cluster.stages import Stage, done_already, stages_of
from gpt_core.settings import PipelineJob

_STAGES: dict[str, Stage[Any, Any, Any]] = {
    "tokenize": tokenizing,
    "pretrain": training,
    "evaluate": evaluating,
    "generate": generating,
}


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """What the stages made, and how long each took; None seconds for a stage that was skipped."""

    corpus: tokenizing.Tokenized
    model: training.Trained
    evaluation: evaluating.Evaluated
    generated: generating.Generated
    seconds: dict[str, float | None]


def run_pipeline(job: PipelineJob) -> PipelineResult:
    """Run every stage whose output is not there yet and return what all of them made.

    Mistakes in any stage that show without the stages before it are found first.
    """
    job.pretrain.model.shape(vocabulary_size=1)
    generating.check_prompts(job.generate)
    done = done_already(job, _STAGES)
    with stages_of(job, "pipeline", job.output, done) as (stages, _):
        corpus = stages.run("tokenize", tokenizing, job.tokenize)
        model = stages.run("pretrain", training, job.pretrain)
        evaluation = stages.run("evaluate", evaluating, job.evaluate)
        generated = stages.run("generate", generating, job.generate)
    return PipelineResult(corpus, model, evaluation, generated, stages.seconds)
