"""The settings of every job: the one definition behind YAML files, flags and Python objects.

``jobs.cli`` builds these from defaults < file < flags; a Python caller builds the same
frozen objects directly. Types are strict: ``true`` is not 1 and ``"3e-4"`` is not a
number. Field docstrings are the help text. Nothing else in ``gpt_core`` imports this
module, so that the rest runs where pydantic is not installed.
"""

from gpt_core.settings.base import (
    ClusterSettings,
    Count,
    CountOrRange,
    Index,
    JobSettings,
    ModelName,
    Names,
    Place,
    Places,
    PoolSettings,
    Positive,
    Settings,
    Share,
    TrackingSettings,
    absolute,
)
from gpt_core.settings.checkpoints import ExportSettings, ImportSettings
from gpt_core.settings.evaluate import EvaluateJob, EvaluateSettings, TaskSettings
from gpt_core.settings.finetune import FinetuneJob, FinetuneSettings, FinetuneTraining
from gpt_core.settings.generate import EngineSettings, GenerateJob, GenerateSettings, SamplingSettings
from gpt_core.settings.inspect import InspectSettings
from gpt_core.settings.pipeline import EvaluateStage, GenerateStage, PipelineJob, PretrainStage, TokenizeStage
from gpt_core.settings.plan import PlanSettings
from gpt_core.settings.pretrain import (
    AnatomySettings,
    CompareSettings,
    ModelSettings,
    PresetName,
    PretrainJob,
    PretrainSettings,
    RecipeSettings,
    ReplaySettings,
    ShapeSettings,
    TrainSettings,
)
from gpt_core.settings.serve import ServeJob, ServeSettings
from gpt_core.settings.tokenize import (
    SourceSettings,
    TokenizeJob,
    TokenizerSettings,
    TokenizeSettings,
    TraceSettings,
    TrainTokenizerSettings,
    VerifySettings,
)

__all__ = [
    "AnatomySettings",
    "ClusterSettings",
    "CompareSettings",
    "Count",
    "CountOrRange",
    "EngineSettings",
    "EvaluateJob",
    "EvaluateSettings",
    "EvaluateStage",
    "ExportSettings",
    "FinetuneJob",
    "FinetuneSettings",
    "FinetuneTraining",
    "GenerateJob",
    "GenerateSettings",
    "GenerateStage",
    "ImportSettings",
    "Index",
    "InspectSettings",
    "JobSettings",
    "ModelName",
    "ModelSettings",
    "Names",
    "PipelineJob",
    "Place",
    "Places",
    "PlanSettings",
    "PoolSettings",
    "Positive",
    "PresetName",
    "PretrainJob",
    "PretrainSettings",
    "PretrainStage",
    "RecipeSettings",
    "ReplaySettings",
    "SamplingSettings",
    "ServeJob",
    "ServeSettings",
    "Settings",
    "ShapeSettings",
    "Share",
    "SourceSettings",
    "TaskSettings",
    "TokenizeJob",
    "TokenizeSettings",
    "TokenizeStage",
    "TokenizerSettings",
    "TraceSettings",
    "TrackingSettings",
    "TrainSettings",
    "TrainTokenizerSettings",
    "VerifySettings",
    "absolute",
]
