"""Settings of all stages in one file, each fed by the one before."""

from typing import Annotated, Self

from pydantic import AfterValidator, model_validator

from gpt_core.errors import SettingsError
from gpt_core.settings.base import JobSettings, Place, absolute, fitting
from gpt_core.settings.evaluate import EvaluateSettings
from gpt_core.settings.generate import GenerateSettings
from gpt_core.settings.pretrain import PretrainSettings
from gpt_core.settings.tokenize import TokenizeSettings

# A place, or "" for the one that follows from the pipeline's output and the stages before.
StagePlace = Annotated[str, AfterValidator(absolute)]


class TokenizeStage(TokenizeSettings):
    """Tokenizing inside a pipeline."""

    output: StagePlace = ""
    """Folder or URL of the corpus; by default OUTPUT/corpus."""


class PretrainStage(PretrainSettings):
    """Pretraining inside a pipeline."""

    corpus: StagePlace = ""
    """Corpus to train on; by default the tokenized one."""
    output: StagePlace = ""
    """Folder of the run; by default OUTPUT/model."""


class EvaluateStage(EvaluateSettings):
    """Evaluation inside a pipeline."""

    checkpoint: StagePlace = ""
    """Checkpoint or run to measure; by default the pretrained one."""
    corpus: StagePlace | None = ""
    """Corpus to measure on; by default the tokenized one; null measures tasks alone."""
    output: StagePlace = ""
    """Folder for the results; by default OUTPUT/evaluation."""


class GenerateStage(GenerateSettings):
    """Generation inside a pipeline."""

    checkpoint: StagePlace = ""
    """Checkpoint or run that completes; by default the pretrained one."""
    output: StagePlace = ""
    """Folder of the generated dataset; by default OUTPUT/generated."""


class PipelineJob(JobSettings):
    """Settings of `herd pipeline`: the stages of one output folder, each fed by the one before."""

    output: Place
    """Folder or URL of the whole pipeline; each stage writes a folder of its own in it."""
    tokenize: TokenizeStage
    pretrain: PretrainStage = PretrainStage()
    evaluate: EvaluateStage = EvaluateStage()
    generate: GenerateStage

    @model_validator(mode="after")
    def _stage_folders(self) -> Self:
        """Give each stage the folders that follow from the pipeline's output and from the stages before."""
        self._fill("tokenize", output=f"{self.output}/corpus")
        self._fill("pretrain", corpus=self.tokenize.output, output=f"{self.output}/model")
        trained = self.pretrain.output
        self._fill("evaluate", checkpoint=trained, corpus=self.tokenize.output, output=f"{self.output}/evaluation")
        self._fill("generate", checkpoint=trained, output=f"{self.output}/generated")
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        fitting(self._check_evaluation)
        return self

    def _check_evaluation(self) -> None:
        """Refuse to measure what the stages before will not have made."""
        tokenize, pretrain, evaluate = self.tokenize, self.pretrain, self.evaluate
        holds_out = tokenize.validation_fraction or tokenize.validation_tail
        if evaluate.corpus == tokenize.output and evaluate.split == "validation" and not holds_out:
            raise SettingsError(
                "evaluate.split",
                "validation, and tokenize.validation_fraction is 0",
                "a split that the corpus will have",
                "hold documents out with tokenize.validation_fraction, or measure on the split train",
            )
        positions = pretrain.model.shape(vocabulary_size=1).num_positions
        if evaluate.checkpoint == pretrain.output and (evaluate.context_tokens or 1) > positions:
            raise SettingsError(
                "evaluate.context_tokens",
                str(evaluate.context_tokens),
                f"at most the model's num_positions, {positions}",
                "shorten the context",
            )

    def _fill(self, stage: str, **places: str) -> None:
        settings = getattr(self, stage)
        empty = {name: place for name, place in places.items() if getattr(settings, name) == ""}
        # The object is frozen for its users; here it is still being made.
        object.__setattr__(self, stage, settings.model_copy(update=empty))
