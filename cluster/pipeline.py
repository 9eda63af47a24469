"""`herd pipeline`: tokenize, pretrain, evaluate and generate, each stage fed by the one before."""

from dataclasses import dataclass
from typing import Any

from cluster import evaluating, generating, tokenizing, training
from cluster.session import require_own_cpus
from cluster.stages import Stage, done_already, stages_of
from gpt_core.settings import PipelineJob
from gpt_core.tokens.tokenizer import load_tokenizer
from gpt_core.training.training_plan import check_vocabulary

_WORKERS = "pretrain.train: num_workers x threads_per_worker"
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
    check_stages(job)
    done = done_already(job, _STAGES)
    if "pretrain" not in done:
        require_own_cpus(job.cluster, job.pretrain.train.fewest_cpus, _WORKERS)
    with stages_of(job, "pipeline", job.output, done) as (stages, _):
        corpus = stages.run("tokenize", tokenizing, job.tokenize)
        model = stages.run("pretrain", training, job.pretrain)
        evaluation = stages.run("evaluate", evaluating, job.evaluate)
        generated = stages.run("generate", generating, job.generate)
    return PipelineResult(corpus, model, evaluation, generated, stages.seconds)


def check_stages(job: PipelineJob) -> None:
    """Find the mistakes in later stages that would otherwise show after hours.

    Raises:
        CorpusError: There is no prompt, no corpus to train on, or no file of an evaluation task.
        SettingsError: Model, vocabulary, context, tasks and sampling do not fit together.
    """
    pretrain, evaluate = job.pretrain, job.evaluate
    if pretrain.corpus == job.tokenize.output:
        tokenizer = load_tokenizer(job.tokenize.tokenizer.name)
        shape = pretrain.model.shape(tokenizer.vocabulary_size)
        check_vocabulary(shape, tokenizer.name, tokenizer.vocabulary_size)
        training.plan_of(pretrain, pretrain.corpus, shape)
    else:
        shape = training.resolve(pretrain).plan.shape
    if evaluate.checkpoint == pretrain.output:
        evaluating.tasks_of(evaluate, evaluate.context_tokens or shape.num_positions)
    generating.scan_of(job.generate)
