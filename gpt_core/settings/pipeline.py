"""Settings of all stages in one file, each fed by the one before."""

from typing import Self

from pydantic import model_validator

from gpt_core.settings.base import JobSettings, Place
from gpt_core.settings.evaluate import EvaluateSettings
from gpt_core.settings.generate import GenerateSettings
from gpt_core.settings.pretrain import PretrainSettings
from gpt_core.settings.tokenize import TokenizeSettings


class TokenizeStage(TokenizeSettings):
    """Tokenizing inside a pipeline."""

    output: Place = ""
    """Folder or URL of the corpus; by default OUTPUT/corpus."""


class PretrainStage(PretrainSettings):
    """Pretraining inside a pipeline."""

    corpus: Place = ""
    """Corpus to train on; by default the tokenized one."""
    output: Place = ""
    """Folder of the run; by default OUTPUT/model."""


class EvaluateStage(EvaluateSettings):
    """Evaluation inside a pipeline."""

    checkpoint: Place = ""
    """Checkpoint or run to measure; by default the pretrained one."""
    corpus: Place | None = ""
    """Corpus to measure on; by default the tokenized one."""
    output: Place = ""
    """Folder for the results; by default OUTPUT/evaluation."""


class GenerateStage(GenerateSettings):
    """Generation inside a pipeline."""

    checkpoint: Place = ""
    """Checkpoint or run that completes; by default the pretrained one."""
    output: Place = ""
    """Folder of the generated dataset; by default OUTPUT/generated."""


class PipelineJob(JobSettings):
    """Settings of `herd pipeline`: the stages of one output folder, each fed by the one before."""

    output: Place
    """Folder of the whole pipeline; each stage writes a folder of its own in it."""
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

    def _fill(self, stage: str, **places: str) -> None:
        settings = getattr(self, stage)
        empty = {name: place for name, place in places.items() if not getattr(settings, name)}
        # The object is frozen for its users; here it is still being made.
        object.__setattr__(self, stage, settings.model_copy(update=empty))
