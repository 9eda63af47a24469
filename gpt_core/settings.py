"""The settings of every job: the one definition behind YAML files, flags and Python objects.

``jobs.cli`` builds these from defaults < file < flags; a Python caller builds the same
frozen objects directly. Types are strict: ``true`` is not 1 and ``"3e-4"`` is not a
number. Field docstrings are the help text. Nothing else in ``gpt_core`` imports this
module, so that the rest runs where pydantic is not installed.
"""

import os
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gpt_core.presets import PRESETS, ModelShape


def absolute(place: str) -> str:
    """Return a local path as an absolute one, since a Ray worker's current folder is another; URLs stay."""
    if not place or "://" in place or place.startswith(("$", "models:/")):
        return place
    return os.path.abspath(os.path.expanduser(place))  # noqa: PTH100, PTH111 - Path would eat the end of a glob


Count = Annotated[int, Field(gt=0)]
Index = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[str, AfterValidator(absolute)]
Places = Annotated[tuple[Place, ...], Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
# A flag of a setting that may be a list hands over a list, also of one number.
CountOrRange = Annotated[
    Count | Annotated[tuple[Count, Count], Field(strict=False)],
    BeforeValidator(lambda value: value[0] if isinstance(value, list | tuple) and len(value) == 1 else value),
]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(@[A-Za-z][\w-]*)?$")]
PresetName = Literal[
    "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl",
    "gpt3-small", "gpt3-medium", "gpt3-large", "gpt3-xl",
    "gpt3-2.7b", "gpt3-6.7b", "gpt3-13b", "gpt3-175b",
]  # fmt: skip


class _NoSuchName:
    """A class attribute that is not there."""

    def __get__(self, owner: object, kind: object = None) -> None:
        raise AttributeError


class _SettingsType(type(BaseModel)):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
    # Python's abstract classes have a method of this name; hidden, so that a setting may be called so.
    register = _NoSuchName()  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]


class Settings(BaseModel, metaclass=_SettingsType):
    """Base of all settings: frozen, strict, no unknown names, no NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ClusterSettings(Settings):
    """Where the job runs."""

    address: str | None = None
    """Ray cluster to use: "auto", HOST:PORT or ray://HOST:PORT (herd submit: http://HEAD:8265); null starts a Ray of
    its own, or takes RAY_ADDRESS."""
    num_cpus: Count | None = None
    """CPUs the job's own Ray may use; null means all of this machine. Not allowed together with an address."""
    min_cpus: Count | None = None
    """Free CPUs to wait for on a cluster, so that its autoscaler adds nodes; null takes those that are there."""
    min_gpus: Count | None = None
    """Free GPUs to wait for likewise."""
    object_store_bytes: Annotated[int, Field(ge=78_643_200)] = 268_435_456
    """Shared memory of the job's own Ray in bytes, at least 75 MiB. No text and no token goes through it."""


class TrackingSettings(Settings):
    """Where MLflow records go."""

    enabled: bool = True
    """Send records to MLflow; false keeps them in the output folder's journal only."""
    uri: str | None = None
    """MLflow tracking address; null takes MLFLOW_TRACKING_URI, else a SQLite file beside the output folder."""
    experiment: str = "gpt-herd"
    """MLflow experiment the runs belong to."""


class JobSettings(Settings):
    """What every job that runs on a cluster shares."""

    cluster: ClusterSettings = ClusterSettings()
    tracking: TrackingSettings = TrackingSettings()


class PoolSettings(Settings):
    """The actors that work on the planned shards."""

    min_actors: Count = 1
    """Actors that are always there."""
    max_actors: Count | None = None
    """Actors at most; null means one for each CPU of the cluster."""
    cpus_per_actor: Positive = 0.5
    """CPUs Ray reserves for an actor; below 1, so that actors never starve Ray Data's own tasks."""
    max_tries: Count = 3
    """Times a shard is tried before it is reported as failed; the other shards go on."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(
                f"max_actors {self.max_actors} is below min_actors {self.min_actors}; raise it or leave it out"
            )
        return self


class SourceSettings(Settings):
    """One named source of text."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name in manifests, traces and mixtures: letters, digits, dots, dashes."""
    paths: Annotated[Places, Field(min_length=1)]
    """Files, folders, globs or URLs (s3://, gs://); $STDLIB is Python's own standard library."""
    exclude: Names = ()
    """Globs, relative to the path they are found under, of files to leave out."""
    weight: Positive = 1.0
    """Share of training tokens drawn from this source, relative to the other sources' weights."""
    text_field: str = "text"
    """Field of jsonl, parquet and Arrow rows that holds the document."""
    separator: str | None = None
    """String between the documents of a text file; null makes each file one document."""


def _absolute_if_file(name: str) -> str:
    return absolute(name) if os.path.isfile(os.path.expanduser(name)) else name  # noqa: PTH111, PTH113


class TokenizerSettings(Settings):
    """The vocabulary, and the program that applies it."""

    name: Annotated[str, AfterValidator(_absolute_if_file)] = "gpt2"
    """"gpt2", "bytes" (256 bytes and end-of-text), or the path of a tiktoken ranks file."""
    backend: Literal["auto", "tiktoken", "gigatoken"] = "auto"
    """auto takes gigatoken where it is installed, checks it against tiktoken on every shard, and falls back."""


class TokenizeSettings(Settings):
    """What `herd tokenize` reads and writes."""

    output: Place
    """Folder or URL of the corpus: shards, rejects and manifest."""
    input: Places = ()
    """Files, folders, globs or URLs of a corpus with one source; use `sources` for several."""
    sources: Annotated[tuple[SourceSettings, ...], Field(strict=False)] = ()
    """Named sources with weights."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    shard_bytes: Count = 67_108_864
    """Input bytes a shard, before tokenizing (compressed bytes of compressed files)."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of documents held out as the validation split, chosen by a hash of each document's text."""
    validation_tail: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each document's end held out instead: for a corpus of few long texts, such as one book."""
    split_seed: Index = 0
    """Seed of the hash that chooses the held-out documents."""
    max_document_bytes: Count = 8_388_608
    """Longer documents are set aside in rejects/; at worst an actor's memory grows by 50 times the longest."""
    max_reject_share: Share = 1.0
    """The job fails, and commits nothing, when more than this share of documents is set aside."""
    pool: PoolSettings = PoolSettings()

    @model_validator(mode="after")
    def _one_kind_of_input(self) -> Self:
        if bool(self.input) == bool(self.sources):
            found = "both" if self.input else "neither"
            raise ValueError(f"{found} of input and sources given; give one of them")
        if self.validation_fraction and self.validation_tail:
            raise ValueError("validation_fraction and validation_tail both given; hold out documents or their ends")
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"source name {twice[0]!r} given {names.count(twice[0])} times; names are unique")
        return self

    def named_sources(self) -> tuple[SourceSettings, ...]:
        """Return the sources; `input` becomes one source named "text"."""
        return self.sources or (SourceSettings(name="text", paths=self.input),)


class ModelSettings(Settings):
    """Shape of the model: a preset, and what differs from it."""

    preset: PresetName = "gpt2"
    """Published shape to start from."""
    n_layer: Count | None = None
    """Transformer blocks; null takes the preset's."""
    n_head: Count | None = None
    """Attention heads a block; divides n_embd."""
    n_embd: Count | None = None
    """Width of the residual stream."""
    num_positions: Count | None = None
    """Longest context in tokens."""
    vocabulary_size: Count | None = None
    """Rows of the token embedding; null takes the corpus's tokenizer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate of embeddings, attention and residual branches."""
    attention_band: Count | None = None
    """Band in tokens of every second layer (GPT-3's alternating pattern); null is dense attention everywhere."""

    def shape(self, vocabulary_size: int) -> ModelShape:
        """Return the preset's shape with these settings over it; the vocabulary is as given unless set.

        Raises:
            SettingsError: The numbers do not make a model, such as heads that do not divide the width.
        """
        changes = self.model_dump(exclude={"preset"}, exclude_none=True)
        return replace(PRESETS[self.preset].shape, **{"vocabulary_size": vocabulary_size, **changes})


class RecipeSettings(Settings):
    """Optimizer and schedule; the defaults are those of the GPT-3 paper."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon updates the blocks' matrices with Muon and the rest with AdamW."""
    learning_rate: Positive = 6e-4
    """Peak learning rate."""
    min_learning_rate_share: Share = 0.1
    """Learning rate at the end of the decay, as a share of the peak."""
    warmup_tokens: Index = 0
    """Tokens of linear warm-up."""
    decay_tokens: Count | None = None
    """Tokens at which the cosine decay ends; null is the end of training."""
    beta1: Share = 0.9
    """AdamW's first-moment decay."""
    beta2: Share = 0.95
    """AdamW's second-moment decay."""
    epsilon: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decay of tensors of two or more dimensions."""
    clip_norm: Positive = 1.0
    """Global gradient norm above which gradients are scaled down."""
    muon_learning_rate: Positive = 0.02
    """Peak learning rate of the matrices when the optimizer is muon."""


class TrainSettings(Settings):
    """Length, batch plan and rhythm of a training run."""

    num_steps: Count = 1000
    """Optimizer steps."""
    context_tokens: Count | None = None
    """Tokens of a training window; null takes the model's num_positions."""
    batch_sequences: Count = 512
    """Sequences of an optimizer step, over all workers."""
    micro_batch_sequences: Count = 4
    """Sequences of one forward and backward; with batch_sequences it fixes the order of every sum."""
    num_workers: CountOrRange = 1
    """Data-parallel workers: a power of two; or [MIN, MAX], as many as the cluster's nodes have room for at the time.
    Results do not depend on it."""
    threads_per_worker: Count = 1
    """CPU threads of a worker; recorded, since CPU kernels may depend on it."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes GPUs where the cluster has one for each worker."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto computes in bf16 where the hardware has matrix units for it, with fp32 master weights."""
    reduction: Literal["exact", "fast"] = "exact"
    """exact sums gradients in one fixed tree (same bits for any num_workers); fast uses the library's all-reduce."""
    seed: Index = 0
    """Seed of initial weights, data order and dropout."""
    evaluate_every_steps: Count | None = 100
    """Steps between evaluations on the held-out split; null evaluates at the end only."""
    evaluate_sequences: Count = 64
    """Windows of the held-out split used by each of these evaluations."""
    checkpoint_every_steps: Count | None = 100
    """Steps between checkpoints; null writes none by steps but the last."""
    checkpoint_every_seconds: Positive | None = None
    """Seconds after which a checkpoint is written besides; null is none."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept; the best by held-out loss is kept besides."""
    ramp_start_sequences: Count | None = None
    """Sequences of the first steps, doubling up to batch_sequences over ramp_tokens; null is no ramp."""
    ramp_tokens: Index = 0
    """Tokens over which the batch grows."""
    max_loss_rise: Positive | None = None
    """Nats above the smoothed loss at which the run stops; null stops only for a loss that is no number."""
    compiled: bool = False
    """Compile the model: about half a minute once, worth it for long runs."""
    max_failures: Index = 3
    """Losses of workers or nodes survived in a row without a new checkpoint between them."""

    @property
    def fewest_workers(self) -> int:
        """The least number of workers to train on."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The largest number of workers to train on."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _batch_plan(self) -> Self:
        if self.batch_sequences % self.micro_batch_sequences:
            raise ValueError(
                f"micro_batch_sequences {self.micro_batch_sequences} does not divide "
                f"batch_sequences {self.batch_sequences}"
            )
        micro_batches = self.batch_sequences // self.micro_batch_sequences
        if self.reduction == "exact" and micro_batches & (micro_batches - 1):
            raise ValueError(
                f"batch_sequences / micro_batch_sequences is {micro_batches}; exact reduction needs a power of two"
            )
        fewest, most = self.fewest_workers, self.most_workers
        if any(self._works_with(count, micro_batches) for count in range(fewest, most + 1)):
            return self
        if fewest > most:
            raise ValueError(f"num_workers {[fewest, most]} has its largest number first; expected [MIN, MAX]")
        if self.reduction == "exact" and (fewest < most or most & (most - 1)):
            below = 1 << (most.bit_length() - 1)
            raise ValueError(
                f"num_workers {self._workers_in_words} is no power of two, which exact reduction needs; "
                f"take {below} or {2 * below}, or reduction fast"
            )
        raise ValueError(
            f"num_workers {self._workers_in_words} does not divide the {micro_batches} micro-batches of a step"
        )

    def _works_with(self, num_workers: int, micro_batches: int) -> bool:
        fits_tree = self.reduction == "fast" or not num_workers & (num_workers - 1)
        return fits_tree and micro_batches % num_workers == 0

    @property
    def _workers_in_words(self) -> str:
        fewest, most = self.fewest_workers, self.most_workers
        return str(most) if fewest == most else f"{fewest} to {most}"


class PretrainSettings(Settings):
    """What `herd pretrain` reads, trains and writes."""

    corpus: Place
    """Folder or URL of a corpus made by `herd tokenize`."""
    output: Place
    """Folder of the run: checkpoints, journal and settings."""
    model: ModelSettings = ModelSettings()
    recipe: RecipeSettings = RecipeSettings()
    train: TrainSettings = TrainSettings()
    register: ModelName | None = None
    """NAME or NAME@ALIAS: registers the trained model in MLflow, in the Hugging Face layout, as the newest version of
    NAME, to which ALIAS (newest) then points; models:/NAME@ALIAS is a checkpoint to the other jobs."""


class EvaluateSettings(Settings):
    """What `herd evaluate` measures."""

    checkpoint: Place
    """Checkpoint folder, a run folder whose newest whole checkpoint is taken, or models:/NAME@ALIAS of MLflow."""
    corpus: Place
    """Corpus to measure on."""
    output: Place
    """Folder for the results."""
    split: Literal["train", "validation"] = "validation"
    """Split of the corpus to measure on."""
    context_tokens: Count | None = None
    """Tokens of a window; null takes the model's num_positions."""
    max_windows: Count | None = None
    """Windows measured at most, from the start of the split; null measures all."""
    windows_per_shard: Count = 64
    """Windows of one planned piece of work."""
    batch_sequences: Count = 16
    """Windows of one forward pass."""
    pool: PoolSettings = PoolSettings(cpus_per_actor=0.9)


class SamplingSettings(Settings):
    """How the next token is chosen."""

    max_tokens: Count = 64
    """New tokens of a completion at most."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Divides the logits; 0 is greedy."""
    top_k: Count | None = 40
    """Keep the k likeliest tokens; 1 is greedy, null keeps all."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep the likeliest tokens that together reach this probability."""
    min_p: Share | None = None
    """Keep tokens at least this share as likely as the likeliest."""
    repetition_penalty: Positive | None = None
    """Divides (positive) or multiplies (negative) the logits of tokens already in the context."""
    stop: Names = ()
    """Strings that end a completion; the text is cut before them."""
    num_samples: Count = 1
    """Completions of each prompt."""
    seed: Index = 0
    """Seed of the draws; each token depends on (seed, prompt id, sample, position) alone."""
    logprobs: Index | None = None
    """Likeliest alternatives recorded for each token; null records no log-probabilities."""


class EngineSettings(Settings):
    """The replicas that compute completions."""

    num_replicas: Count = 1
    """Replicas of the model; the fewest there are where max_replicas is given."""
    max_replicas: Count | None = None
    """Most replicas: more are started while completions wait for a slot; null keeps num_replicas."""
    num_slots: Count = 16
    """Sequences a replica decodes at once."""
    threads_per_replica: Count = 1
    """CPU threads of a replica."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes a GPU for each replica where the cluster has them."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto computes in bf16 where the hardware has matrix units for it."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below num_replicas {self.num_replicas}; raise it or leave it out"
            )
        return self


class GenerateSettings(Settings):
    """What `herd generate` completes."""

    checkpoint: Place
    """Checkpoint folder, a run folder whose newest whole checkpoint is taken, or models:/NAME@ALIAS of MLflow."""
    prompts: Annotated[Places, Field(min_length=1)]
    """Prompt files: txt (a prompt a line), jsonl (prompt, optional id and sampling), parquet or Arrow."""
    output: Place
    """Folder of the generated dataset."""
    format: Literal["jsonl", "arrow"] = "jsonl"
    """File format of the rows."""
    prompts_per_shard: Count = 256
    """Prompts of one planned shard."""
    sampling: SamplingSettings = SamplingSettings()
    engine: EngineSettings = EngineSettings()
    pool: PoolSettings = PoolSettings(cpus_per_actor=0.1, max_actors=2)


class ServeSettings(Settings):
    """What `herd serve` serves."""

    checkpoint: Place
    """Checkpoint folder, a run folder whose newest whole checkpoint is taken, or models:/NAME@ALIAS of MLflow."""
    host: str = "127.0.0.1"
    """Address to listen on; any but loopback needs an API key in HERD_API_KEY."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """TCP port to listen on."""
    model_name: str = "gpt-herd"
    """Name the service gives the model."""
    max_queued_completions: Count = 256
    """Completions (prompts times n) that wait for a slot before new requests are turned away with status 503."""
    max_completions: Count = 128
    """Completions (prompts times n) of one request at most."""
    max_request_bytes: Count = 4_194_304
    """Bytes of one request's body at most."""
    drain_seconds: Positive = 20.0
    """Seconds that requests in progress get to finish when the service is stopped."""
    engine: EngineSettings = EngineSettings()


class TrainTokenizerSettings(Settings):
    """What `herd train-tokenizer` learns from and writes."""

    input: Annotated[Places, Field(min_length=1)]
    """Files, folders, globs or URLs of text, read as `herd tokenize` reads them."""
    output: Place
    """File the vocabulary is written to, in tiktoken's format; `--tokenizer.name FILE` then takes it."""
    vocabulary_size: Annotated[int, Field(ge=257)] = 8192
    """Ids of the tokenizer, the 256 bytes and the end-of-text token included."""
    exclude: Names = ()
    """Globs of files to leave out."""
    text_field: str = "text"
    """Field of jsonl, parquet and Arrow rows that holds the document."""
    separator: str | None = None
    """String between the documents of a text file; null makes each file one document."""
    max_document_bytes: Count = 8_388_608
    """Longer documents are left out."""
    max_text_bytes: Count | None = None
    """Text read at most, from the start of the input; null reads all."""


class VerifySettings(Settings):
    """What `herd verify` checks."""

    folder: Place
    """Folder or URL of a corpus."""
    num_threads: Count = 1
    """Files read at once."""


class TraceSettings(Settings):
    """What `herd trace` looks up: a step's row, or a document."""

    corpus: Place
    """Folder or URL of the corpus."""
    run: Place | None = None
    """Run folder whose seed, context and batch are meant; null takes those below."""
    seed: Index = 0
    """Seed of the data order."""
    context_tokens: Count = 1024
    """Tokens of a training window."""
    batch_sequences: Count = 512
    """Rows of an optimizer step."""
    step: Count | None = None
    """Optimizer step to trace, counted from 1 as in logs."""
    row: Index | None = None
    """Row of the step, counted from 0."""
    document: str | None = None
    """Document to trace: its shard and its row there, such as train/00000042.arrow:17."""
    epoch: Index = 0
    """Epoch of the document's source, counted from 0."""

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        asks_cell = self.step is not None and self.row is not None
        if asks_cell == (self.document is not None) or (self.step is None) != (self.row is None):
            raise ValueError("give step and row, or document")
        return self


class ReplaySettings(Settings):
    """What `herd replay` recomputes."""

    run: Place
    """Folder of the training run."""
    step: Count
    """Step to recompute, counted from 1 as it was logged."""
    num_workers: Count = 1
    """Processes of this machine to share the step: any number the run could have used."""
    corpus: Place | None = None
    """Folder or URL of the corpus, where it has moved since."""


class CompareSettings(Settings):
    """What `herd compare` reads."""

    runs: Annotated[tuple[Place, ...], Field(strict=False, min_length=2, max_length=2)]
    """Folders of two training runs."""


class AnatomySettings(Settings):
    """What `herd model` prints."""

    model: ModelSettings = ModelSettings()
    preset: PresetName | None = None
    """Short for model.preset."""


class PlanSettings(Settings):
    """What `herd plan` estimates."""

    preset: PresetName = "gpt3-175b"
    """Published shape."""
    model: ModelSettings = ModelSettings()
    tokens: Positive = 300e9
    """Training tokens."""
    gpus: Count = 1024
    """GPUs of the run."""
    gpu: Literal["v100", "a100-40gb", "a100", "h100-pcie", "h100", "h200", "b200"] = "h100"
    """Kind of GPU."""
    mfu: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of the GPU's peak that training reaches; measure it, and say it here."""
    tflops: Positive | None = None
    """TFLOP/s a GPU reaches in training, in place of mfu."""
    tokens_per_second: Positive | None = None
    """Tokens/s a GPU reaches in training, in place of mfu and tflops."""
    flops_formula: Literal["6N", "palm"] = "6N"
    """FLOPs a token: 6N counts the parameters, palm the attention besides."""
    dollars_per_gpu_hour: Positive | None = None
    """Price of one GPU for an hour."""
    batch_tokens: Positive | None = None
    """Tokens of a full batch; null takes the preset's, or 524,288."""
    context_tokens: Count | None = None
    """Tokens of a training window; null takes the model's num_positions."""
    micro_batch_sequences: Count = 1
    """Sequences of one forward and backward on a GPU."""
    ramp_start_tokens: Positive = 32_000
    """Tokens of the first steps' batches."""
    ramp_tokens: Annotated[float, Field(ge=0)] = 4e9
    """Tokens over which the batch grows; 0 is no ramp."""
    tokenize_rate: Positive = 5e6
    """Tokens/s one core tokenizes, as measured with `herd tokenize`."""
    text_bytes_per_token: Positive = 4.1
    """Bytes of text a token stands for: about 4.1 in English prose, 2.5 in code, with the GPT-2 vocabulary."""

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.tflops is not None and self.tokens_per_second is not None:
            raise ValueError("tflops and tokens_per_second both given; give one of them")
        return self


class ExportSettings(Settings):
    """What `herd export` converts."""

    checkpoint: Place
    """Checkpoint folder, or a run folder whose newest whole checkpoint is taken."""
    output: Place
    """New folder in the Hugging Face layout."""


class ImportSettings(Settings):
    """What `herd import` converts."""

    model: Place
    """Folder in the Hugging Face layout: config.json and safetensors or .bin weights."""
    output: Place
    """New run folder, whose one checkpoint evaluate, generate and serve take."""
    tokenizer: str = "gpt2"
    """The model's tokenizer: "gpt2", "bytes", or the path of a tiktoken ranks file."""


class TokenizeJob(TokenizeSettings, JobSettings):
    """Settings of `herd tokenize`."""


class PretrainJob(PretrainSettings, JobSettings):
    """Settings of `herd pretrain`."""


class EvaluateJob(EvaluateSettings, JobSettings):
    """Settings of `herd evaluate`."""


class GenerateJob(GenerateSettings, JobSettings):
    """Settings of `herd generate`."""


class ServeJob(ServeSettings):
    """Settings of `herd serve`."""

    cluster: ClusterSettings = ClusterSettings()


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
    corpus: Place = ""
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
